"""Ask about pictures: `look`."""

from pathlib import Path
from typing import Annotated

import typer

from deltahalt.cli.ask import FULL
from deltahalt.cli.base import DeviceOption, DtypeOption, JsonOption, NewTokensOption, out, status
from deltahalt.cli.common import load_vision_model, read_image
from deltahalt.errors import InputError
from deltahalt.policies import Dense, parse_policy
from deltahalt.policies.text import with_options
from deltahalt.profile_names import names_profile

HALTING = "window-attention:scope=visual"


def look(
    image: Annotated[list[Path], typer.Option(help="Image file to ask about; repeat it for several.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    model: Annotated[str, typer.Option(help="Hub id or local folder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"Policy of the decoder, name:option=value,...; by default {HALTING}, or dense if --vision-policy is "
            "given."
        ),
    ] = None,
    vision_policy: Annotated[
        str | None,
        typer.Option(help="Policy of the ViT, name:option=value,..., such as visionzip; by default none."),
    ] = None,
    vision_retain: Annotated[
        float | None, typer.Option(help="Share of visual tokens that --vision-policy keeps.")
    ] = None,
    max_new_tokens: NewTokensOption = 64,
    compare: Annotated[bool, typer.Option("--compare", help="Also run the full model, and show both.")] = False,
    as_json: JsonOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Answer a question about pictures with fewer visual tokens, and show the time, FLOPs and cache it took."""
    from deltahalt.answering.documents import check_question
    from deltahalt.answering.pictures import ask_about_pictures
    from deltahalt.cli.answer_json import answers_json
    from deltahalt.cli.answer_table import show_answers
    from deltahalt.cli.before import check_answer, check_vision_model
    from deltahalt.vision import UniformGroups
    from deltahalt.vision.policies import parse_vision_policy

    if vision_policy is None and vision_retain is not None:
        raise InputError(
            f"--vision-retain is {vision_retain}, but no policy of the ViT is given: add --vision-policy visionzip"
        )
    if policy is not None and names_profile(policy):
        raise InputError(f"{policy} is for prompts of text: name a policy, such as {HALTING}")
    policy = policy or (HALTING if vision_policy is None else Dense.name)
    if vision_policy is not None and vision_retain is not None:
        vision_policy = with_options(vision_policy, {"retain": vision_retain})
    vision = None if vision_policy is None else parse_vision_policy(vision_policy)
    methods = {policy if vision_policy is None else f"{vision_policy}/{policy}": (parse_policy(policy), vision)}
    if compare:
        methods = {FULL: (Dense(), None if vision is None else UniformGroups(retain=1)), **methods}
    check_question(question)
    config = check_vision_model(model, methods.values(), device=device)
    check_answer(max_new_tokens, config)
    pictures = [read_image(file) for file in image]
    loaded = load_vision_model(model, dtype=dtype, device=device)
    with status("looking and answering"):
        answers = ask_about_pictures(loaded, pictures, question, methods, max_new_tokens=max_new_tokens)
    if as_json:
        ran = {name: Dense.name if name == FULL else name for name in answers}
        typer.echo(answers_json(loaded.name, [question], {name: [own] for name, own in answers.items()}, ran))
    else:
        show_answers(out, answers)
