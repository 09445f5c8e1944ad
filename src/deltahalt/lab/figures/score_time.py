"""Score against end-to-end time (Fig. 6): a dot for each policy, and the frontier with labels."""

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
    """Draw score against seconds per answer to `out`, an .svg or a .png file.

    The score is the mean over tasks of the mean over a task's metrics, which must be shares. Seconds are those of
    prefill and generation, mean over tasks. Only tasks with rows of every policy count. Raises InputError as
    `check_plot` and `compare` do.
    """
    check_plot(out)
    title, panel = compare(rows)
    scatter(title, [panel], out)


def compare(rows: Iterable[EvalRow]) -> tuple[str, Panel]:
    """Return the figure's title and its panel. Of rows of the same policy, task and metric, the last counts.

    Batch size and chat format may differ between tasks, but not between the policies of a task. If versions of
    libraries differ, the title names them.

    Raises:
        InputError: For rows of several models or settings, or of the full model only; if there is no task that every
            policy has run with the same samples and settings; if a metric is not a share, or a task generates nothing.
    """
    rows = list(rows)
    subjects = sorted(set(map(_subject, rows)))
    if len(subjects) > 1:
        raise InputError(f"these are rows of several models or settings ({'; '.join(subjects)}): give rows of only one")
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
    """Return what a figure is about: the model, the machine, and the settings that are not the usual ones."""
    settings = {
        f"halted K/V {row.halted_kv}": row.halted_kv != "drop",
        f"prompts from {row.min_prompt_tokens} tokens": row.min_prompt_tokens > 0,
        f"attention by {row.attention}": row.attention not in ("", "sdpa"),
        f"{row.processes} processes": row.processes > 1,
    }
    others = ", ".join(text for text, unusual in settings.items() if unusual)
    usual = f"{row.model}, {row.dtype} on {row.machine}, up to {row.max_length} tokens"
    return f"{usual}, {others}" if others else usual


def _versions(rows: list[EvalRow]) -> str:
    """Return text on libraries whose versions differ: the version of most rows, and the policies with another."""
    differing = ""
    for library in ("transformers", "torch"):
        version: Callable[[EvalRow], str] = attrgetter(library)
        [(usual, _)] = Counter(map(version, rows)).most_common(1)
        unlike = dict.fromkeys(f"{method(row.policy)} {version(row)}" for row in rows if version(row) != usual)
        if unlike:
            differing += f", {library} {usual} ({', '.join(unlike)})"
    return differing


def _check(task: str, by_policy: dict[str, list[EvalRow]]) -> None:
    """Raise InputError for rows of one task that cannot be averaged or compared."""
    for row in itertools.chain(*by_policy.values()):
        if not 0 <= row.value <= 1:
            raise InputError(
                f"{row.metric} of {task} is {row.value:g}, not a share: draw only tasks with metrics from 0 to 1"
            )
        if row.new_tokens == 0:
            raise InputError(
                f"{task} generates no answers, so there is no time to draw: draw only tasks that generate answers"
            )
    alike = attrgetter("metric", "samples", "batch_size", "chat_template")
    settings = {policy: set(map(alike, rows)) for policy, rows in by_policy.items()}
    first = Dense.name if Dense.name in settings else next(iter(settings))
    unlike = [policy for policy, own in settings.items() if own != settings[first]]
    if unlike:
        raise InputError(
            f"{', '.join(unlike)} ran {task} on other samples, metrics or batch sizes than {first}, or not all in the "
            "chat format: evaluate them with the same settings"
        )


def _point(policy: str, tasks: list[list[EvalRow]]) -> Point:
    """Return a policy's score, and its seconds per answer, negated so that higher is better."""
    seconds = fmean(_seconds(rows[0]) for rows in tasks)
    return Point(policy, -seconds, fmean(fmean(row.value for row in rows) for rows in tasks))


def _seconds(row: EvalRow) -> float:
    """Return the seconds per answer of the row's task. Times are of the first process and its share of samples."""
    return (row.prefill_seconds + row.generation_seconds) / math.ceil(row.samples / row.processes)
