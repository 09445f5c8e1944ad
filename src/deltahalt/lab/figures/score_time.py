"""Score against end-to-end time (Fig. 6): a dot a policy, and the frontier with labels."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from deltahalt.errors import InputError
from deltahalt.lab.figures.comparison import Panel, Point
from deltahalt.lab.figures.house import check_plot
from deltahalt.lab.figures.names import method
from deltahalt.lab.figures.scatter import scatter
from deltahalt.lab.rows.eval import EvalRow
from deltahalt.policies import Dense

Measured = dict[str, dict[str, list[EvalRow]]]  # rows by policy and task, one for each metric


def score_time(rows: Iterable[EvalRow], out: Path) -> None:
    """Draw score against seconds an answer to `out`, an .svg or a .png file.

    Score: mean over tasks of the mean over a task's metrics, which must be shares. Seconds: of prefill and generation,
    mean over tasks. Tasks are those that have rows of every policy. Raises InputError as `check_plot` and `compare` do.
    """
    check_plot(out)
    title, panel = compare(rows)
    scatter(title, [panel], out)


def compare(rows: Iterable[EvalRow]) -> tuple[str, Panel]:
    """The figure's title, and its panel. Of rows of the same policy, task and metric, the last counts.

    Raises InputError for rows of several models or ways to run them, of none but the full model, without a common task,
    with metrics that are no shares, or of tasks that generate nothing or that policies did not run alike. One task may
    have another batch size than the next, and only some the chat format; where libraries' versions differ, the title
    has them.
    """
    rows = list(rows)
    subjects = sorted(set(map(_subject, rows)))
    if len(subjects) > 1:
        raise InputError(f"these are rows of several models or ways ({'; '.join(subjects)}): draw one at a time")
    measured: Measured = {}
    for row in {(row.policy, row.task, row.metric): row for row in rows}.values():
        measured.setdefault(row.policy, {}).setdefault(row.task, []).append(row)
    if not measured.keys() - {Dense.name}:
        raise InputError("there are no rows of a policy that halts: run `deltahalt eval --rows` with one")
    tasks = sorted(set.intersection(*(set(by_task) for by_task in measured.values())))
    if not tasks:
        raise InputError("no task has rows of every policy: evaluate all policies on the same tasks")
    for task in tasks:
        _check(task, {policy: by_task[task] for policy, by_task in measured.items()})
    shown = [row for by_task in measured.values() for task in tasks for row in by_task[task]]
    batches = sorted({str(row.batch_size) for row in shown})
    points = {policy: _point(policy, [by_task[task] for task in tasks]) for policy, by_task in measured.items()}
    full = points.pop(Dense.name, None)
    return f"{subjects[0]}, batches of {' or '.join(batches)}{_versions(shown)}", Panel(
        f"mean over {len(tasks)} tasks: {', '.join(tasks)}",
        "score (up is better)",
        "seconds an answer, prefill and generation (left is better)",
        sign=1,
        full=math.nan if full is None else full.quality,
        points=list(points.values()),
        speed_sign=-1,
        full_speed=None if full is None else full.speed,
    )


def _subject(row: EvalRow) -> str:
    """What a figure is about: a model, the machine, and how it was run."""
    ways = {
        f"halted K/V {row.halted_kv}": row.halted_kv != "drop",
        f"prompts from {row.min_prompt_tokens} tokens": row.min_prompt_tokens > 0,
        f"attention by {row.attention}": row.attention not in ("", "sdpa"),
        f"{row.processes} processes": row.processes > 1,
    }
    way = ", ".join(text for text, unusual in ways.items() if unusual)
    usual = f"{row.model}, {row.dtype} on {row.machine}, up to {row.max_length} tokens"
    return f"{usual}, {way}" if way else usual


def _versions(rows: list[EvalRow]) -> str:
    """Libraries whose versions differ: that of most rows, and who ran with another."""
    differing = ""
    for library in ("transformers", "torch"):
        version: Callable[[EvalRow], str] = attrgetter(library)
        [(usual, _)] = Counter(map(version, rows)).most_common(1)
        unlike = dict.fromkeys(f"{method(row.policy)} {version(row)}" for row in rows if version(row) != usual)
        if unlike:
            differing += f", {library} {usual} ({', '.join(unlike)})"
    return differing


def _check(task: str, by_policy: dict[str, list[EvalRow]]) -> None:
    """Refuse rows of one task that cannot be averaged or compared."""
    for row in itertools.chain(*by_policy.values()):
        if not 0 <= row.value <= 1:
            raise InputError(
                f"{row.metric} of {task} is {row.value:g}, no share: only shares can be averaged to a score"
            )
        if row.new_tokens == 0:
            raise InputError(f"{task} generates no answers, so they take no time: draw tasks that do")
    alike = attrgetter("metric", "samples", "batch_size", "chat_template")
    ways = {policy: set(map(alike, rows)) for policy, rows in by_policy.items()}
    first = Dense.name if Dense.name in ways else next(iter(ways))
    unlike = [policy for policy, way in ways.items() if way != ways[first]]
    if unlike:
        raise InputError(
            f"{', '.join(unlike)} ran {task} on other samples, metrics or batch sizes than {first}, or not all in the "
            "chat format: evaluate them alike"
        )


def _point(policy: str, tasks: list[list[EvalRow]]) -> Point:
    """A policy's seconds an answer, negative so that higher is better, and its score."""
    seconds = fmean(_seconds(rows[0]) for rows in tasks)
    return Point(policy, -seconds, fmean(fmean(row.value for row in rows) for rows in tasks))


def _seconds(row: EvalRow) -> float:
    """Seconds an answer of the row's task; times are those of the first process, which has its share of the samples."""
    return (row.prefill_seconds + row.generation_seconds) / math.ceil(row.samples / row.processes)
