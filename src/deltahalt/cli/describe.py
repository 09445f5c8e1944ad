"""The commands `policies`, which lists policies and their options, and `flops`, which computes FLOPs."""

import json
from dataclasses import asdict
from inspect import cleandoc
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from deltahalt.cli.base import JsonOption, log, out
from deltahalt.cli.common import load_model, parse_numbers, resolve_policy
from deltahalt.errors import InputError, PolicyError
from deltahalt.methods.registry import known_methods
from deltahalt.policies import parse_policy
from deltahalt.policies.describe import describe
from deltahalt.policies.options import did_you_mean
from deltahalt.profile import check_profile, default_text
from deltahalt.profile_names import names_profile
from deltahalt.vision.policies import known_vision_policies


def policies(
    name: Annotated[str | None, typer.Argument(help="Show one policy with its options.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List all methods, what each does and at which stage it acts; or show one with its options and their defaults.

    --policy takes all but those of the stage `vision`, which are for `look --vision-policy`, `view` and `vision-sweep`.
    """
    methods: dict[str, Any] = {**known_methods(), **known_vision_policies()}
    if name is not None and name not in methods:
        raise PolicyError(f"there is no policy {name!r}: `deltahalt policies` lists them{did_you_mean(name, methods)}")
    if as_json:
        rows = [_described(method) for method in methods.values()]
        typer.echo(json.dumps(rows if name is None else _described(methods[name]), indent=2))
    elif name is None:
        table = Table(Column("policy", no_wrap=True), Column("stage", no_wrap=True), "what it does, and its source")
        for method in methods.values():
            table.add_row(method.name, method.stage, f"{method.summary}; {method.source}")
        out.print(table)
    else:
        _show_policy(methods[name])


def _described(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "stage": method.stage,
        "source": method.source,
        "options": [asdict(option) for option in describe(method)],
    }


def _show_policy(method: Any) -> None:
    out.print(f"{method.name}: {method.summary}")
    out.print(f"stage {method.stage}; source: {method.source}")
    out.print(cleandoc(method.__doc__).split("\n\n")[0])
    options = describe(method)
    table = Table(Column("option and default", overflow="fold", max_width=28), "type and meaning", box=None)
    for option in options:
        table.add_row(f"{option.name}={option.default}", f"{option.type}: {option.meaning}")
    out.print(table if options else "It has no options.")


def flops(
    shape: Annotated[
        str | None, typer.Option(help="A known shape, or layers,hidden,ffn,heads,kv_heads,head_dim.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Take the shape of this model's configuration instead.")] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths, comma-separated.")] = "8192,16384,32768,65536,131072",
    policy: Annotated[
        str,
        typer.Option(
            help="Policies, name:option=value,..., joined by +; or auto. With --model, auto loads the model and takes "
            "the policy of its profile; with --shape, it is the default policy of models without a profile."
        ),
    ] = "dash",
    as_json: JsonOption = False,
) -> None:
    """Show what a policy saves: by the paper's formula (Table 3) and by a true count of FLOPs."""
    from deltahalt.flops import KNOWN_SHAPES, ModelShape, savings

    if shape is None and model is None:
        known = ", ".join(KNOWN_SHAPES)
        raise InputError(f"flops needs the sizes of a model: give --shape (one of {known}, or six numbers) or --model")
    if shape is not None and model is not None:
        raise InputError("--shape and --model both give the sizes of a model: leave one out")
    counts = parse_numbers(lengths)
    if names_profile(policy):
        check_profile(policy)
    else:
        parse_policy(policy)
    if model is None:
        sizes, text = ModelShape.parse(str(shape)), policy
        if names_profile(policy):
            text = default_text(policy, sizes.layers)
            log.print(f"{policy}: {text}, the default for uncalibrated models", soft_wrap=True)
    else:
        from deltahalt.loading.models import load_config

        sizes, text = ModelShape.of(load_config(model).get_text_config()), policy
        if names_profile(policy):
            text = resolve_policy(policy, load_model(model).model)
    rows = [savings(sizes, parse_policy(text), length) for length in counts]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("prompt", "kept", "paper: saved", "paper: speedup", "true: saved", "true: speedup")
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
