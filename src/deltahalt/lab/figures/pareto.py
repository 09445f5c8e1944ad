"""The picture of accuracy against speed: a dot a policy, and the frontier with labels."""

from collections.abc import Iterable
from pathlib import Path

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.comparison import compare
from deltahalt.lab.figures.house import check_plot
from deltahalt.lab.figures.scatter import scatter


def pareto(rows: Iterable[SweepRow], out: Path) -> None:
    """Draw accuracy against speed to `out`, an .svg or a .png file.

    Left: share of exact answers, a mean over the tasks that the full model answers exactly at all. Right: change of the
    negative log-likelihood, nats a token, a mean over all tasks. Both against the true-FLOPs ratio of the schedule on
    Qwen2.5-7B's shape at 16K. The same rows give the same file. Raises InputError as `check_plot` and `compare` do.
    """
    check_plot(out)
    comparison = compare(rows)
    scatter(comparison.title, comparison.panels, out)
