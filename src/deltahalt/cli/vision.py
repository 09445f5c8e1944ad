"""Fewer visual tokens, compared: `vision-sweep`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from deltahalt.cli.base import MOST_SAMPLES, DeviceOption, measured
from deltahalt.cli.common import load_vision_model, parse_names, parse_shares
from deltahalt.errors import InputError
from deltahalt.files import require_apart
from deltahalt.profile_names import names_profile

EVERY = (
    "dash dash-layer fastv dart v2drop sparsevlm random uniform window-attention key-norm "
    "vision-dash dart-vit tome:step=0.6 tofu:step=0.6 visionzip prumerge-plus random-groups uniform-groups "
    "vision-dash/dash"
)


def vision_sweep(
    model: Annotated[
        str,
        typer.Option(help="Hub id or local folder of a Qwen2-VL; recipes/small_vlm trains one on such pictures."),
    ],
    rows: Annotated[Path, typer.Option(help="JSONL file that rows go to; those already in it are not run again.")],
    methods: Annotated[
        str,
        typer.Option(help="Methods, separated by blanks, or auto; A/B runs A in the ViT and B in the decoder."),
    ] = EVERY,
    retains: Annotated[str, typer.Option(help="Shares of visual tokens to keep.")] = "0.5,0.35,0.25,0.111,0.0625",
    pictures: Annotated[
        int, typer.Option(min=2, max=MOST_SAMPLES, help="Held-out pictures, with five questions each.")
    ] = 40,
    skip: Annotated[
        int, typer.Option(min=0, max=MOST_SAMPLES, help="Leave out the first held-out pictures, seen before.")
    ] = 0,
    question: Annotated[
        Literal["before", "after"], typer.Option(help="Where the question stands, beside the picture.")
    ] = "after",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto for that of the weights.")
    ] = "float32",
    device: DeviceOption = None,
) -> None:
    """Measure how much answers suffer from fewer visual tokens, on generated pictures; needs the extra `vision`."""
    from deltahalt.cli.before import check_vision_model
    from deltahalt.lab.evaluation.pictures.combinations import combinations
    from deltahalt.lab.evaluation.pictures.row import VisionRow
    from deltahalt.lab.evaluation.pictures.table import markdown
    from deltahalt.lab.rows.base import require_rows
    from deltahalt.policies import parse_policy
    from deltahalt.vision.policies import parse_vision_policy

    try:
        from deltahalt.lab.evaluation.pictures.sweep import vision_sweep as run_sweep
    except ModuleNotFoundError as error:
        raise InputError(f"pictures need {error.name}: pip install 'deltahalt[vision]'") from error

    chosen = combinations(parse_names(methods, "--methods"), parse_shares(retains))
    require_apart(rows, [model])
    require_rows(rows, VisionRow)
    stages = [
        (
            None if each.policy is None or names_profile(each.policy) else parse_policy(each.policy),
            None if each.vision_policy is None else parse_vision_policy(each.vision_policy),
        )
        for each in chosen
    ]
    check_vision_model(model, stages, device=device)
    loaded = load_vision_model(model, dtype=dtype, device=device)
    what = f"{len(chosen)} combinations on {pictures} pictures"
    run = partial(run_sweep, loaded, chosen, pictures, rows, question=question, skip=skip)
    measured(what, len(chosen) + 1, run, lambda found: typer.echo(markdown(found)))
