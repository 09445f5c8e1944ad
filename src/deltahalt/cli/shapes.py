"""Prompts of many shapes: `shapes`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Column, Table

from deltahalt.cli.base import DeviceOption, DtypeOption, ModelOption, log, out
from deltahalt.cli.common import check_policy, load_model, parse_numbers, resolve_policy
from deltahalt.files import require_writable
from deltahalt.methods.registry import parse_method
from deltahalt.profile import AUTO


def shapes(
    rows: Annotated[
        Path | None, typer.Option(help="JSONL file that rows go to; those already in it are not run again.")
    ] = None,
    model: ModelOption = "smollm2-135m",
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = AUTO,
    shapes: Annotated[str, typer.Option(help="Shapes, separated by commas; by default all.")] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each shape.")] = 3,
    tokens: Annotated[str, typer.Option(help="Lengths of prompts, about, which take turns.")] = "2000,4000,8000",
    data: Annotated[
        Path | None, typer.Option(help="Folder of texts for documents: essays/*.txt, longbench/multi_news.jsonl.")
    ] = None,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Prompts of the half that calibration draws from.")
    ] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Measure policies on prompts as people write them, beside the full model (see docs/accuracy.md)."""
    from deltahalt.lab.evaluation.shapes import calibration_seeds, held_out_seeds, make_prompts, shape_names
    from deltahalt.lab.evaluation.shapes.measure import measure_prompts
    from deltahalt.lab.evaluation.shapes.summary import difference, summarize

    if rows is not None:
        require_writable(rows)
    named = policies.split()
    for policy in named:
        check_policy(policy)
    seeds = calibration_seeds(prompts) if calibration else held_out_seeds(prompts)
    made = make_prompts(shape_names(shapes), seeds, parse_numbers(tokens), data)
    loaded = load_model(model, dtype=dtype, device=device)
    chosen = {text: parse_method(text) for text in (resolve_policy(policy, loaded.model) for policy in named)}
    with Progress(console=log, transient=True) as progress:
        task = progress.add_task(f"{len(chosen)} policies on {len(made)} prompts", total=len(made))
        measured = measure_prompts(loaded, made, chosen, rows, tick=lambda: progress.advance(task))
    table = Table(
        Column("policy", overflow="fold"),
        "shape",
        "prompts",
        "full %",
        "policy's %",
        "difference",
        "NLL change",
        "7B, 16K",
    )
    for line in summarize(measured):
        table.add_row(
            line.policy,
            line.shape,
            f"{line.prompts}",
            "" if line.full is None else f"{100 * line.full:.1f}",
            "" if line.score is None else f"{100 * line.score:.1f}",
            difference(line),
            f"{line.nll[0]:+.3f} ± {line.nll[1]:.3f}",
            f"{line.reference_speedup:.2f}x",
        )
    out.print(table)
