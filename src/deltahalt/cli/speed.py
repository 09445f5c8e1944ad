"""Speed: `bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from deltahalt.cli.base import DeviceOption, DtypeOption, PolicyOption, log, out
from deltahalt.cli.common import check_policy, load_model, parse_numbers, resolve_policy
from deltahalt.errors import InputError
from deltahalt.policies import parse_policy
from deltahalt.profile import AUTO


def bench(
    model: Annotated[str | None, typer.Option(help="Measure this model (default: smollm2-135m).")] = None,
    shape: Annotated[str | None, typer.Option(help="Measure random weights of this shape instead.")] = None,
    policy: PolicyOption = AUTO,
    lengths: Annotated[str, typer.Option(help="Prompt lengths, comma-separated.")] = "4096",
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs each way, after one warm-up.")] = 5,
    seed: Annotated[int, typer.Option(help="Draws the prompts.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    rows: Annotated[Path | None, typer.Option(help="Add the rows to this JSONL file.")] = None,
) -> None:
    """Time prefill in turn: plain Hugging Face, this engine with nothing halted, and the policy."""
    import torch

    from deltahalt.bench import append_rows, measure, random_model
    from deltahalt.flops import ModelShape

    if model is not None and shape is not None:
        raise InputError("give either --shape or --model")
    check_policy(policy)
    sizes = parse_numbers(lengths)
    network: Any
    if shape is None:
        name = model or "smollm2-135m"
        network = load_model(name, dtype=dtype, device=device).model
    else:
        name, place = f"random {shape}", device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = getattr(torch, "float32" if dtype == "auto" else dtype)
        network = random_model(ModelShape.parse(shape), dtype=kind, device=place, longest=max(sizes))
    policy = resolve_policy(policy, network)
    chosen = parse_policy(policy)
    table = Table("prompt", "full s", "nothing halted s", "overhead", "halted s", "speedup", "bound", "speedup / bound")
    with Progress(console=log, transient=True) as progress:
        task = progress.add_task(f"{name}, {policy}", total=3 * (repeats + 1) * len(sizes))
        options: dict[str, Any] = {"batch": batch, "repeats": repeats, "seed": seed}
        for size in sizes:
            row = measure(network, name, chosen, policy, size, tick=lambda: progress.advance(task), **options)
            if rows is not None:
                append_rows(rows, [row])
            table.add_row(
                f"{row.prompt:,}",
                f"{row.full_seconds:.3f}",
                f"{row.dense_seconds:.3f}",
                f"{100 * row.overhead:+.1f} %",
                f"{row.halted_seconds:.3f}",
                f"{row.speedup:.2f}x",
                f"{row.bound:.2f}x",
                f"{row.share:.2f}",
            )
    out.print(table)
    out.print(f"{row.machine}; {row.dtype}; medians of {repeats} runs in turn", highlight=False)
