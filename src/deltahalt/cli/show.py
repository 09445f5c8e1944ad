"""Rows already measured: `plot` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from deltahalt.errors import InputError


def plot(
    rows: Annotated[list[Path], typer.Argument(help="JSONL files of rows that `deltahalt sweep` wrote.")],
    picture: Annotated[Path, typer.Option("--out", help="Where to draw: a file that ends in .svg or .png.")],
) -> None:
    """Draw accuracy against speed, from rows already measured; needs the extra `plot`."""
    from deltahalt.evaluation.sweep import read_sweep
    from deltahalt.figures.pareto import pareto

    measured = []
    for file in rows:
        if not file.is_file():
            raise InputError(f"there is no file {file}: give rows that `deltahalt sweep` wrote")
        try:
            measured += read_sweep(file)
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} holds other things than rows that `deltahalt sweep` wrote: {error}") from error
    pareto(measured, picture)


def report(
    file: Annotated[Path, typer.Argument(help="JSONL rows of `deltahalt bench` or `deltahalt sweep`.")],
    frontier: Annotated[bool, typer.Option("--frontier", help="Of a sweep: policies that none beats.")] = False,
) -> None:
    """Print measured rows as a Markdown table."""
    from deltahalt import bench as speed
    from deltahalt.evaluation import summary as accuracy
    from deltahalt.evaluation.sweep import read_sweep
    from deltahalt.figures.comparison import on_frontier

    if not file.is_file():
        raise InputError(f"there is no file {file}: give rows that `deltahalt bench` or `deltahalt sweep` wrote")
    try:
        table = speed.markdown(speed.read_rows(file))
    except TypeError:  # rows of the other kind
        rows = read_sweep(file)
        table = accuracy.markdown(on_frontier(rows) if frontier else rows)
    typer.echo(table)
