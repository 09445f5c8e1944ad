"""Rows already measured: `plot` and `report`."""

from pathlib import Path
from typing import Annotated

import typer


def plot(
    rows: Annotated[list[Path], typer.Argument(help="JSONL files of rows that `deltahalt sweep` wrote.")],
    picture: Annotated[Path, typer.Option("--out", help="Where to draw: a file that ends in .svg or .png.")],
) -> None:
    """Draw accuracy against speed, from rows already measured; needs the extra `plot`."""
    from deltahalt.evaluation.sweep import SweepRow
    from deltahalt.figures.pareto import pareto
    from deltahalt.rows import read_rows

    pareto([row for file in rows for row in read_rows(file, SweepRow)], picture)


def report(
    rows: Annotated[list[Path], typer.Argument(help="JSONL files of rows of `bench`, `sweep` or `eval`.")],
    frontier: Annotated[bool, typer.Option("--frontier", help="Of a sweep: policies that none beats.")] = False,
) -> None:
    """Print measured rows as Markdown, a table for each kind of rows."""
    from deltahalt.evaluation.sweep import SweepRow
    from deltahalt.figures.comparison import on_frontier
    from deltahalt.rows import read_rows
    from deltahalt.tables import KINDS, markdown

    if frontier:
        typer.echo(markdown(on_frontier([row for file in rows for row in read_rows(file, SweepRow)])))
    else:
        typer.echo(markdown([row for file in rows for row in read_rows(file, *KINDS)]))
