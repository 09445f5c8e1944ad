"""Accuracy against speed: a dot for each policy, and the frontier with labels."""

from collections.abc import Iterable
from pathlib import Path

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.comparison import compare
from deltahalt.lab.figures.house import check_plot
from deltahalt.lab.figures.scatter import scatter


def pareto(rows: Iterable[SweepRow], out: Path) -> None:
    """Draw accuracy against speed to `out`, an .svg or a .png file.

    Left: share of exact answers, mean over the tasks in which the full model has any. Right: change of the negative
    log-likelihood in nats per token, mean over all tasks. Both are plotted against the true-FLOPs ratio of the schedule
    on Qwen2.5-7B's shape and a prompt of 16,384 tokens. Equal rows give equal files. Raises InputError as `check_plot`
    and `compare` do.
    """
    check_plot(out)
    comparison = compare(rows)
    scatter(comparison.title, comparison.panels, out)
