"""Compare one model's policies by sweep rows: quality against speed, and the Pareto frontier."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from deltahalt.errors import InputError
from deltahalt.lab.evaluation.summary import PolicySummary, summarize, with_formats
from deltahalt.lab.evaluation.sweep import SweepRow, SweepSettings
from deltahalt.policies.text import is_dense

SPEED = "speedup of prefill (ratio of true FLOPs, Qwen2.5-7B's shape at 16K)"


@dataclass(frozen=True)
class Point:
    """A policy with its speed and its quality: higher is better in both."""

    policy: str
    speed: float
    quality: float


@dataclass(frozen=True)
class Panel:
    """Policies' quality against their speed.

    axis, across: the labels of the quality axis and the speed axis. sign, speed_sign: the axes show sign * quality and
    speed_sign * speed. full: the full model's quality in the units of its axis. full_speed: the full model's speed;
    None to draw no line for it.
    """

    title: str
    axis: str
    across: str
    sign: int
    full: float
    points: list[Point]
    speed_sign: int = 1
    full_speed: float | None = None

    def spot(self, point: Point) -> tuple[float, float]:
        """Return the position of a point in the units of the axes."""
        return self.speed_sign * point.speed, self.sign * point.quality


@dataclass(frozen=True)
class Comparison:
    """The title and panels of a figure about one model."""

    title: str
    panels: list[Panel]


def compare(rows: Iterable[SweepRow]) -> Comparison:
    """Return both panels, on the samples that have rows of every policy. Raises InputError as `comparable` does."""
    title, chosen = comparable(rows)
    tasks = summarize_tasks(chosen)
    exact = {task: lines for task, lines in tasks.items() if any(line.full_exact for line in lines)}
    return Comparison(
        title,
        [
            Panel(
                f"mean over {', '.join(exact) or 'no task: the full model answers none exactly'}",
                "share of exact answers (up is better)",
                SPEED,
                sign=1,
                full=fmean(line.full_exact for lines in exact.values() for line in lines) if exact else math.nan,
                points=_means(exact, lambda line: line.exact),
            ),
            Panel(
                f"mean over all tasks ({len(tasks)})",
                "NLL change, nats per token (up is better)",
                SPEED,
                sign=-1,
                full=0.0,
                points=_means(tasks, lambda line: -line.nll_change),
            ),
        ],
    )


def comparable(rows: Iterable[SweepRow]) -> tuple[str, list[SweepRow]]:
    """Return a title, and the rows of halting policies on the samples that have rows of every policy.

    Of rows of the same policy and sample, the last counts. Raises InputError for rows of several models or settings, of
    the full model only, without a common sample, or with an NLL that is not finite.
    """
    halting = with_formats(row for row in rows if not is_dense(row.policy))
    halted = {(_subject(row), row.sample, row.policy): row for row in halting}
    subjects = sorted({_subject(row) for row in halted.values()})
    if not subjects:
        raise InputError("there are no rows of a policy that halts: run `deltahalt sweep` with one")
    if len(subjects) > 1:
        raise InputError(f"these are rows of several models or settings ({'; '.join(subjects)}): give rows of only one")
    for row in halted.values():
        if not math.isfinite(row.nll - row.full_nll):
            raise InputError(f"the NLL of {row.policy} on sample {row.sample} is not a finite number: sweep it again")
    policies = {row.policy for row in halted.values()}
    measured = Counter(row.sample for row in halted.values())
    common = {sample for sample, count in measured.items() if count == len(policies)}
    if not common:
        raise InputError("no sample has rows of every policy: sweep all policies on the same samples")
    missing = "" if len(common) == len(measured) else f" of {len(measured)} samples, those with rows of every policy"
    return f"{subjects[0]}, n = {len(common)}{missing}", [row for row in halted.values() if row.sample in common]


def summarize_tasks(rows: Iterable[SweepRow]) -> dict[str, list[PolicySummary]]:
    """Return the summaries of all policies for each task, tasks in the order of their names."""
    by_task: dict[str, list[SweepRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return {task: summarize(by_task[task]) for task in sorted(by_task)}


def frontier(points: Iterable[Point]) -> list[Point]:
    """Return the Pareto frontier, slowest first: no other point is as good in both and better in one."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.quality)):
        if not best or point.quality > best[-1].quality or _same(point, best[-1]):
            best.append(point)
    return best[::-1]


def on_frontier(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Return the rows of policies on the frontier of either panel, and of the full model. Raises as `compare` does."""
    best = {point.policy for panel in compare(rows).panels for point in frontier(panel.points)}
    return [row for row in rows if row.policy in best or is_dense(row.policy)]


def _subject(row: SweepRow) -> str:
    """Return what a figure is about: the model, and the settings that differ from the usual ones."""
    usual = SweepSettings()
    settings = {
        f"halted K/V {row.halted_kv}": row.halted_kv != "drop",
        "query-free": row.query_free,
        f"answers up to {row.max_answer_tokens} tokens": row.max_answer_tokens != usual.max_answer_tokens,
        row.dtype: row.dtype != "",
    }
    return ", ".join([row.model, *(text for text, unusual in settings.items() if unusual)])


def _means(tasks: dict[str, list[PolicySummary]], quality: Callable[[PolicySummary], float]) -> list[Point]:
    """Return a point for each policy, whose quality is the mean over all tasks."""
    by_policy: dict[str, list[PolicySummary]] = {}
    for lines in tasks.values():
        for line in lines:
            by_policy.setdefault(line.policy, []).append(line)
    return [
        Point(policy, lines[0].reference_speedup, fmean(map(quality, lines))) for policy, lines in by_policy.items()
    ]


def _same(one: Point, other: Point) -> bool:
    return (one.speed, one.quality) == (other.speed, other.quality)
