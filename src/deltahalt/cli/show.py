"""Figures and tables of measured rows: `plot` and `report`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from deltahalt.cli.base import ForceOption
from deltahalt.errors import InputError
from deltahalt.files import require_output


def plot(
    rows: Annotated[
        list[Path],
        typer.Argument(help="JSONL files that `sweep`, `eval`, `bench`, `bench-vllm` or `observe` wrote."),
    ],
    picture: Annotated[Path, typer.Option("--out", help="File to draw to, which ends in .svg or .png.")],
    figure: Annotated[
        str,
        typer.Option(
            help="pareto or signals for rows of `sweep`; score-time for rows of `eval`; speed for rows of `bench`; "
            "serving for rows of `bench-vllm`; delta-distribution, delta-attention or sparsity for rows of `observe`."
        ),
    ] = "pareto",
    force: ForceOption = False,
) -> None:
    """Draw measured rows: accuracy against speed, or the figure that --figure names; needs the extra `plot`."""
    from deltahalt.lab.figures.house import check_plot, is_plot
    from deltahalt.lab.rows.base import read_rows

    figures = _figures()
    if figure not in figures:
        raise InputError(f"there is no figure {figure!r}; choose one of {', '.join(figures)}")
    kind, draw = figures[figure]
    check_plot(picture)
    require_output(picture, is_plot, inputs=rows, force=force)
    draw([row for file in rows for row in read_rows(file, kind)], picture)


def _figures() -> dict[str, tuple[Any, Callable[[list[Any], Path], None]]]:
    """The type of rows that each figure shows, and the function that draws it."""
    from deltahalt.lab.bench.row import BenchRow
    from deltahalt.lab.bench.serving import ServingRow
    from deltahalt.lab.evaluation.observe import Observation
    from deltahalt.lab.evaluation.sweep import SweepRow
    from deltahalt.lab.figures.delta_attention import delta_attention
    from deltahalt.lab.figures.delta_distribution import delta_distribution
    from deltahalt.lab.figures.pareto import pareto
    from deltahalt.lab.figures.score_time import score_time
    from deltahalt.lab.figures.serving import serving
    from deltahalt.lab.figures.signals import signals
    from deltahalt.lab.figures.sparsity import sparsity
    from deltahalt.lab.figures.speed import speed
    from deltahalt.lab.rows.eval import EvalRow

    return {
        "pareto": (SweepRow, pareto),
        "signals": (SweepRow, signals),
        "score-time": (EvalRow, score_time),
        "speed": (BenchRow, speed),
        "serving": (ServingRow, serving),
        "delta-distribution": (Observation, delta_distribution),
        "delta-attention": (Observation, delta_attention),
        "sparsity": (Observation, sparsity),
    }


def report(
    rows: Annotated[
        list[Path], typer.Argument(help="JSONL files of measured rows, such as those of `bench` or `sweep`.")
    ],
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier", help="For rows of `sweep`: show only policies that no other beats in both speed and accuracy."
        ),
    ] = False,
) -> None:
    """Print measured rows as Markdown tables, one for each kind of rows."""
    from deltahalt.lab.evaluation.sweep import SweepRow
    from deltahalt.lab.figures.comparison import on_frontier
    from deltahalt.lab.figures.tables import KINDS, markdown
    from deltahalt.lab.rows.base import read_rows

    if frontier:
        typer.echo(markdown(on_frontier([row for file in rows for row in read_rows(file, SweepRow)])))
        return
    found = [row for file in rows for row in read_rows(file, *KINDS)]
    if not found:
        raise InputError(f"there are no rows in {', '.join(map(str, rows))}: give files of rows that were measured")
    typer.echo(markdown(found))
