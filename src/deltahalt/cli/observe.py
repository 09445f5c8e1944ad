"""What tokens do in the full model: `observe`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from deltahalt.cli.base import DeviceOption, DtypeOption, ModelOption, log, out
from deltahalt.cli.common import load_model


def observe(
    rows: Annotated[Path, typer.Option(help="JSONL file that rows go to; samples already in it are not run again.")],
    model: ModelOption = "smollm2-135m",
    data: Annotated[str, typer.Option(help="JSONL of task, prompt, answer; or generated:COUNT.")] = "generated:2",
    characters: Annotated[int, typer.Option(min=1, help="Length of a generated prompt.")] = 12_000,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first samples only.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the generated samples.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Measure how much attention updates each token, and how much it gets; draw it with `deltahalt plot`."""
    from deltahalt.evaluation.observe import columns
    from deltahalt.evaluation.observe import observe as run_observation
    from deltahalt.evaluation.samples import load_samples

    samples = load_samples(data, characters=characters, seed=seed)[:limit]
    loaded = load_model(model, dtype=dtype, device=device)
    with Progress(console=log, transient=True) as progress:
        task = progress.add_task(f"{len(samples)} samples", total=len(samples))
        seen = run_observation(loaded, samples, rows, tick=lambda: progress.advance(task))
    numbers = columns(seen)
    table = Table(*numbers)
    for line in zip(*numbers.values(), strict=True):
        table.add_row(*line)
    out.print(table)
