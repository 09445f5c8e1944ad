"""What tokens do in the full model: `observe`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from deltahalt.cli.base import (
    MOST_SAMPLES,
    CharactersOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelOption,
    SampleSeedOption,
    measured,
    out,
)
from deltahalt.cli.before import check_text_model, check_vision_model
from deltahalt.cli.common import load_model, load_vision_model, parse_numbers
from deltahalt.cli.tables import fitted
from deltahalt.errors import InputError
from deltahalt.files import require_apart

PICTURES = "pictures:"  # before a number of them, drawn from seeds


def observe(
    rows: Annotated[Path, typer.Option(help="JSONL file that rows go to; samples already in it are not run again.")],
    model: ModelOption = "smollm2-135m",
    data: Annotated[
        str, typer.Option(help="JSONL of task, prompt, answer; generated:COUNT; or pictures:COUNT, for images.")
    ] = "generated:2",
    characters: CharactersOption = None,
    limit: LimitOption = None,
    seed: SampleSeedOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Measure how much attention updates each token, and how much it gets; draw it with `deltahalt plot --figure`."""
    from deltahalt.lab.evaluation.observe import Observation
    from deltahalt.lab.evaluation.observe import observe as run_observation
    from deltahalt.lab.evaluation.samples import load_samples
    from deltahalt.lab.rows.base import require_rows

    require_apart(rows, [data, model])
    require_rows(rows, Observation)
    if data.startswith(PICTURES):
        if characters is not None or seed is not None:
            raise InputError(f"{data} are the same pictures always: leave --characters and --seed out")
        count, *more = parse_numbers(data.removeprefix(PICTURES), MOST_SAMPLES)
        if more:
            raise InputError(f"{data} has several numbers: give one, such as pictures:8")
        total = min(count, limit or count)
        look = _pictures(model, total, dtype, device)
    else:
        samples = load_samples(data, characters=characters, seed=seed)[:limit]
        check_text_model(model, [], device=device)
        look, total = partial(run_observation, load_model(model, dtype=dtype, device=device), samples), len(samples)
    measured(f"{total} samples", total, partial(look, rows), _show)


def _show(rows: list[Any]) -> None:
    """The rows in numbers."""
    from deltahalt.lab.evaluation.observe import columns

    out.print(fitted(columns(rows), fold="task", common=("model", "modality")))


def _pictures(model: str, count: int, dtype: str, device: str | None) -> Any:
    """What observes the first held-out pictures, each with its first question."""
    check_vision_model(model, [], device=device)
    loaded = load_vision_model(model, dtype=dtype, device=device)
    from deltahalt.lab.evaluation.pictures.observe import observe_pictures
    from deltahalt.lab.evaluation.pictures.samples import held_out_pictures

    return partial(observe_pictures, loaded, held_out_pictures(count))
