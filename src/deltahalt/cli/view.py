"""A prompt as a page: `view`."""

from pathlib import Path
from typing import Annotated

import typer

from deltahalt.cli.base import DeviceOption, DtypeOption, ModelOption, log
from deltahalt.cli.common import load_model, resolve_policy
from deltahalt.errors import InputError
from deltahalt.policies import parse_policy
from deltahalt.profile import names_profile


def view(
    document: Annotated[str, typer.Option(help="Text file to ask about, or - for standard input.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    page: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    model: ModelOption = "smollm2-135m",
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks, side by side.")] = "auto dash",
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Write a page that shows a prompt with each token's score, and at which layer it halts."""
    from deltahalt.documents import read_document
    from deltahalt.viewer.page import render
    from deltahalt.viewer.record import record_prompt

    named = list(dict.fromkeys(policies.split()))
    if not named:
        raise InputError("no policy is named: give one or more in --policies, separated by blanks")
    for policy in named:
        if not names_profile(policy):
            parse_policy(policy)  # a method of another stage halts nothing in the layers
    text = read_document(document)
    loaded = load_model(model, dtype=dtype, device=device)
    chosen = [resolve_policy(policy, loaded.model) for policy in named]
    with log.status(f"reading the document with {len(chosen)} policies"):
        record = record_prompt(loaded, text, question, chosen)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(record), encoding="utf-8")
    log.print(f"{page}: {len(record.tokens):,} tokens", markup=False, highlight=False)
