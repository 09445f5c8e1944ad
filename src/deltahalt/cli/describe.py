"""What there is, from no measurement: `policies` and `flops`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from deltahalt.cli.base import JsonOption, PolicyOption, out
from deltahalt.cli.common import parse_numbers
from deltahalt.errors import InputError
from deltahalt.methods.registry import known_methods
from deltahalt.policies import parse_policy
from deltahalt.vision.policies import known_vision_policies


def policies(as_json: JsonOption = False) -> None:
    """List all methods: what each does, at which stage it acts, where it comes from.

    --policy takes all but those of the stage `vision`, which `vision-sweep` compares.
    """
    methods = [*known_methods().values(), *known_vision_policies().values()]
    rows = [{"name": m.name, "summary": m.summary, "stage": m.stage, "source": m.source} for m in methods]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("policy", "what it does", "stage", "source")
    for row in rows:
        table.add_row(*row.values())
    out.print(table)


def flops(
    shape: Annotated[
        str | None, typer.Option(help="A known shape, or layers,hidden,ffn,heads,kv_heads,head_dim.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Take the shape of this model's configuration instead.")] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths, comma-separated.")] = "8192,16384,32768,65536,131072",
    policy: PolicyOption = "dash",
    as_json: JsonOption = False,
) -> None:
    """Show what a policy saves: by the paper's formula (Table 3) and by a true count of FLOPs."""
    from deltahalt.flops import ModelShape, savings

    if (shape is None) == (model is None):
        raise InputError("give either --shape or --model")
    if model is None:
        sizes = ModelShape.parse(str(shape))
    else:
        from deltahalt.loading.models import load_config

        sizes = ModelShape.of(load_config(model).get_text_config())
    rows = [savings(sizes, parse_policy(policy), length) for length in parse_numbers(lengths)]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("prompt", "kept", "paper: FLOPs saved", "paper: speedup", "true: FLOPs saved", "true: speedup")
    for row in rows:
        table.add_row(
            f"{row.prompt:,}",
            f"{row.kept:,}",
            f"{100 * row.paper_reduction:.2f} %",
            f"{row.paper_speedup:.2f}x",
            f"{100 * row.true_reduction:.2f} %",
            f"{row.true_speedup:.2f}x",
        )
    out.print(table)
