"""Prompts of many shapes: `shapes`."""

from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from deltahalt.cli.base import REFERENCE, DeviceOption, DtypeOption, ModelOption, measured, out
from deltahalt.cli.common import load_model, parse_names, parse_numbers, resolve_methods
from deltahalt.cli.tables import fitted
from deltahalt.files import require_apart
from deltahalt.methods.registry import check_method
from deltahalt.profile_names import AUTO

MOST_PROMPTS = 10_000  # of each shape, all of which are kept in memory


def shapes(
    rows: Annotated[
        Path | None, typer.Option(help="JSONL file that rows go to; those already in it are not run again.")
    ] = None,
    model: ModelOption = "smollm2-135m",
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = AUTO,
    shapes: Annotated[str | None, typer.Option(help="Shapes, separated by commas; by default all.")] = None,
    prompts: Annotated[int, typer.Option(min=1, max=MOST_PROMPTS, help="Prompts of each shape.")] = 3,
    skip: Annotated[
        int, typer.Option(min=0, max=MOST_PROMPTS, help="Leave out the first prompts of each shape, seen before.")
    ] = 0,
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
    from deltahalt.answering.documents import require_room
    from deltahalt.cli.before import check_text_model
    from deltahalt.lab.evaluation.shapes import calibration_seeds, held_out_seeds, make_prompts, shape_names
    from deltahalt.lab.evaluation.shapes.measure import measure_prompts
    from deltahalt.lab.evaluation.shapes.row import ShapeRow
    from deltahalt.lab.rows.base import require_rows

    named = parse_names(policies, "--policies")
    if rows is not None:
        require_apart(rows, [model, *named])
        require_rows(rows, ShapeRow)
    methods = [check_method(policy) for policy in named]
    sizes = parse_numbers(tokens)
    config = check_text_model(model, methods, device=device)
    require_room(max(sizes), 0, config, "give shorter --tokens")
    seeds = (calibration_seeds if calibration else held_out_seeds)(skip + prompts)[skip:]
    wanted = shape_names(() if shapes is None else parse_names(shapes, "--shapes", ","))
    made = make_prompts(wanted, seeds, sizes, data)
    loaded = load_model(model, dtype=dtype, device=device)
    chosen = resolve_methods(named, loaded.model)
    what = f"{len(chosen)} policies on {len(made)} prompts"
    measured(what, len(made), partial(measure_prompts, loaded, made, chosen, rows), _show)


def _show(rows: list[Any]) -> None:
    """A table for each policy, with a line for each shape."""
    from deltahalt.lab.evaluation.shapes.summary import difference, summarize

    for policy, own in groupby(summarize(rows), key=lambda line: line.policy):
        lines = list(own)
        columns = {
            "shape": [line.shape for line in lines],
            "prompts": [f"{line.prompts}" for line in lines],
            "full %": ["" if line.full is None else f"{100 * line.full:.1f}" for line in lines],
            "policy's %": ["" if line.score is None else f"{100 * line.score:.1f}" for line in lines],
            "difference": [difference(line) for line in lines],
            "NLL change": [f"{line.nll[0]:+.3f} ± {line.nll[1]:.3f}" for line in lines],
            "speedup": [f"{line.reference_speedup:.2f}x" for line in lines],
        }
        out.print(fitted(columns, fold="shape", common=("prompts",), caption=REFERENCE, title=policy))
