"""A prompt as a page: `view`."""

from pathlib import Path
from typing import Annotated

import typer

from deltahalt.cli.base import MOST_TOKENS, DeviceOption, DtypeOption, ForceOption, ModelOption, log, status
from deltahalt.cli.common import load_model, load_vision_model, parse_names, read_image, resolve_policy
from deltahalt.errors import InputError
from deltahalt.files import require_output, write_whole
from deltahalt.methods.halting import method_of
from deltahalt.policies import parse_policy
from deltahalt.policies.base import AnyPolicy
from deltahalt.profile_names import names_profile
from deltahalt.vision.policy import VisionPolicy

TEXT_POLICIES = "auto dash"
IMAGE_POLICIES = "dash:scope=visual window-attention:scope=visual"


def view(
    question: Annotated[str, typer.Option(help="What to ask.")],
    page: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    document: Annotated[str | None, typer.Option(help="Text file to ask about, or - for standard input.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image file to ask about; repeat it for several.")] = None,
    model: ModelOption = "smollm2-135m",
    policies: Annotated[
        str | None,
        typer.Option(
            help="Policies, separated by blanks, side by side; ViT/LLM for both. By default two that suit the prompt."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_TOKENS, help="Longest answer of the full model and of each policy; 0 leaves answers out."
        ),
    ] = 48,
    force: ForceOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Write a page that shows which tokens of a prompt halt under each policy, at which layer, and what it answers."""
    from deltahalt.answering.documents import check_question, read_document, require_short
    from deltahalt.cli.before import check_answer, check_text_model, check_vision_model
    from deltahalt.lab.evaluation.pictures.combinations import split_stages
    from deltahalt.lab.viewer.page import is_page, render
    from deltahalt.lab.viewer.record import record_pictures, record_prompt
    from deltahalt.vision.policies import parse_vision_policy

    if document is None and not image:
        raise InputError("there is nothing to ask about: give --document, --image, or both")
    if policies is None:
        policies = IMAGE_POLICIES if image else TEXT_POLICIES
    named = list(dict.fromkeys(parse_names(policies, "--policies")))
    pairs: list[tuple[AnyPolicy | None, VisionPolicy | None]] = []
    for policy in named:
        vision, decoding = split_stages(policy)
        if decoding is not None and image and names_profile(decoding):
            raise InputError(f"{decoding} is for prompts of text: name a policy, such as dash:scope=visual")
        if vision and not image:
            raise InputError(f"{vision} acts in the ViT: give an --image")
        # A method of another stage halts nothing in the layers.
        known = None if decoding is None or names_profile(decoding) else parse_policy(decoding)
        pairs.append((known, parse_vision_policy(vision) if vision else None))
    require_output(page, is_page, inputs=[document, model, *(image or ()), *named], force=force)
    check_question(question)
    text = "" if document is None else read_document(document)
    if image:
        pictures = [read_image(file) for file in image]
        config = check_vision_model(model, pairs, device=device)
        require_short(text, config)
        check_answer(max_new_tokens, config)
        seen = load_vision_model(model, dtype=dtype, device=device)
        with status(f"looking at the image with {len(named)} policies"):
            record = record_pictures(seen, pictures, text, question, named, max_new_tokens=max_new_tokens)
    else:
        methods = [None if known is None else method_of(known) for known, _ in pairs]
        config = check_text_model(model, methods, device=device)
        require_short(text, config)
        check_answer(max_new_tokens, config)
        loaded = load_model(model, dtype=dtype, device=device)
        chosen = [resolve_policy(policy, loaded.model) for policy in named]
        with status(f"reading the document with {len(chosen)} policies"):
            record = record_prompt(loaded, text, question, chosen, max_new_tokens=max_new_tokens)
    write_whole(page, render(record).encode())
    log.print(f"{page}: {len(record.tokens):,} tokens")
