"""Ask about a document: `run` and `demo`."""

from typing import Annotated, Any

import typer

from deltahalt.cli.base import (
    MOST_TOKENS,
    AttentionOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MinPromptOption,
    ModelOption,
    NewTokensOption,
    PolicyOption,
    log,
    out,
    status,
)
from deltahalt.cli.common import load_model, resolve_policy
from deltahalt.errors import InputError
from deltahalt.methods.registry import check_method, parse_method
from deltahalt.policies import Dense
from deltahalt.profile import Wanted
from deltahalt.profile_names import AUTO, names_profile

FULL = "full model"


def run(
    document: Annotated[str, typer.Option(help="Text file to ask about, or - for standard input.")],
    question: Annotated[list[str], typer.Option(help="What to ask; several times for several questions.")],
    model: ModelOption = "smollm2-135m",
    policy: PolicyOption = AUTO,
    pruning_ratio: Annotated[float | None, typer.Option(help="Share of eligible tokens to halt, in [0, 1).")] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Number of tokens that stay, in place of a share.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="Layer that decides: an index, or a fraction such as 0.4.")] = None,
    keep_first: Annotated[int | None, typer.Option(help="Tokens at the beginning that never halt.")] = None,
    keep_last: Annotated[int | None, typer.Option(help="Tokens at the end that never halt, 1 or more.")] = None,
    boundary: Annotated[str | None, typer.Option(help="Halt after the whole layer (block) or its attention.")] = None,
    min_prompt_tokens: MinPromptOption = 0,
    max_new_tokens: NewTokensOption = 64,
    compare: Annotated[bool, typer.Option("--compare", help="Also run the full model, and show both.")] = False,
    as_json: JsonOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    attention: AttentionOption = None,
) -> None:
    """Answer questions about a document with halted prompt tokens, and show what it cost.

    The document is read once for several questions, so that no policy sees them; auto is auto-query-free then, and
    methods that need the question are refused.
    """
    from deltahalt.answering.ask import check_each
    from deltahalt.answering.documents import check_question, read_document, require_short
    from deltahalt.cli.before import check_answer, check_text_model

    settings = {
        "pruning_ratio": pruning_ratio,
        "keep": keep,
        "start": start,
        "keep_first": keep_first,
        "keep_last": keep_last,
        "boundary": boundary,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if len(question) > 1 and names_profile(policy):
        policy = Wanted.parse(policy).for_many_questions()
    method = check_method(policy, given)
    if len(question) > 1:
        check_each(method)
    for each in question:
        check_question(each)
    text = read_document(document)
    config = check_text_model(
        model,
        [method],
        device=device,
        min_prompt_tokens=min_prompt_tokens,
    )
    require_short(text, config)
    check_answer(max_new_tokens, config)
    loaded = load_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attention=attention,
    )
    chosen = resolve_policy(policy, loaded.model, given)
    ran = {FULL: Dense.name} if compare else {}
    _answer_all(
        loaded,
        text,
        question,
        ran | {policy: chosen},
        as_json=as_json,
        max_new_tokens=max_new_tokens,
        min_prompt_tokens=min_prompt_tokens,
    )


def demo(model: ModelOption = "smollm2-135m", policy: PolicyOption = AUTO, as_json: JsonOption = False) -> None:
    """Find a fact planted in the standard library's help texts, with the full model and with halted tokens."""
    from deltahalt.answering.demo import EXPECTED, QUESTION, demo_document
    from deltahalt.cli.before import check_text_model

    check_text_model(model, [check_method(policy)])
    loaded = load_model(model)
    chosen = resolve_policy(policy, loaded.model)
    answers = _answer_all(
        loaded,
        demo_document(loaded.tokenizer),
        [QUESTION],
        {FULL: Dense.name, policy: chosen},
        as_json=as_json,
        max_new_tokens=32,
    )
    log.print(f"Asked: {QUESTION} Right where the answer holds: {EXPECTED}.")
    wrong = [name for name, (answer,) in answers.items() if EXPECTED not in answer.text]
    if wrong:
        raise InputError(f"wrong answer from: {', '.join(wrong)}. Try another --policy or a larger --model")


def _answer_all(
    loaded: Any,
    document: str,
    questions: list[str],
    ran: dict[str, str],
    *,
    as_json: bool,
    max_new_tokens: int,
    **options: Any,
) -> dict[str, list[Any]]:
    """Answer with each policy in turn and show the answers; returns them by name, one for each question.

    ran: the text of each policy by its name; `FULL` is the plain model.
    """
    from deltahalt.answering.ask import ask, ask_each, together, warm_up
    from deltahalt.answering.documents import (
        build_prompt,
        context_ends,
        encode_turn,
        format_turn,
        shared_start,
        to_device,
    )
    from deltahalt.cli.answer_json import answers_json
    from deltahalt.cli.answer_table import show_answers

    config, tokenizer, device = loaded.model.config, loaded.tokenizer, loaded.model.device
    prompts = [build_prompt(tokenizer, config, document, question, answer=max_new_tokens) for question in questions]
    inputs = to_device(prompts[0], device)
    tokens = inputs["input_ids"].shape[1]
    methods = {name: None if name == FULL else parse_method(text) for name, text in ran.items()}
    ends = None
    if len(questions) == 1 and any(method is not None and method.reads_ends for method in methods.values()):
        whole = format_turn(tokenizer, f"{document}\n\n{questions[0]}")
        ends = context_ends(tokenizer, whole, document, tokens)
    elif len(questions) > 1:
        rows = [prompt["input_ids"].to(device) for prompt in prompts]
        alone = encode_turn(tokenizer, config, document)["input_ids"][0].to(device)
        end = min(shared_start(row[0], alone) for row in rows)
    known = {"ends": ends, "question": questions[0], "max_new_tokens": max_new_tokens, **options}
    answers = {}
    warm_up(loaded, inputs)
    for name, method in methods.items():
        with status(f"reading {tokens:,} tokens and answering: {name}"):
            if len(questions) == 1:
                answers[name] = [ask(loaded, inputs, method, **known)]
            else:
                rests = [row[:, end:] for row in rows]
                answers[name] = ask_each(
                    loaded, rows[0][:, :end], rests, method, max_new_tokens=max_new_tokens, **options
                )
    if as_json:
        typer.echo(answers_json(loaded.name, questions, answers, ran))
    else:
        show_answers(out, {name: together(given) for name, given in answers.items()})
    return answers
