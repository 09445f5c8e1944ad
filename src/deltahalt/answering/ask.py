"""Answer questions about a document, with the full model or under a method, and measure time, FLOPs and cache."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltahalt.answering.generation import Generated, generate_after, generate_timed, prefill_shared
from deltahalt.engine.question import question_of
from deltahalt.errors import InputError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import Applied, applying
from deltahalt.methods.base import Ends
from deltahalt.methods.halting import method_of
from deltahalt.methods.registry import AnyMethod

WARM_UP_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    """One answer, with its time, FLOPs and cache size.

    Attributes:
        text: The decoded answer.
        prompt_tokens: T, number of tokens in the prompt; with several questions, in the part that they share.
        new_tokens: Number of generated tokens.
        lengths: For each layer, the number of tokens in its attention during the prefill.
        prefill_seconds: Seconds until the first answer token is known; with several questions, until the part that they
            share is in the cache.
        decode_seconds: Seconds after that.
        flops: True FLOPs of the prefill.
        cache_bytes: Bytes of K and V after the prefill.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    lengths: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float
    flops: int
    cache_bytes: int


@torch.inference_mode()
def ask(
    loaded: LoadedModel,
    prompt: dict[str, torch.Tensor],
    method: AnyMethod | None,
    *,
    ends: Ends | None = None,
    question: str | None = None,
    max_new_tokens: int = 64,
    min_prompt_tokens: int = 0,
) -> Answer:
    """Answer one prompt greedily.

    Args:
        loaded: The model and its tokenizer, from `load`.
        prompt: input_ids and attention_mask, each [1, T], on the model's device.
        method: The method that the model runs under; None for the plain Hugging Face model.
        ends: Number of prompt tokens before and after the context, if known (see `context_ends`).
        question: Its text, if known. A method that does not read it, or does not find it in the prompt, runs without.
        max_new_tokens: Largest number of tokens in the answer.
        min_prompt_tokens: Shorter prompts are not halted.

    Returns:
        The answer, with its time, FLOPs and cache size.

    Raises:
        DeltahaltError: What `applying` raises.
    """
    found = None
    if question is not None and method is not None and method_of(method).reads_question:
        found = _found(loaded, prompt["input_ids"][0], question)
    with _under(loaded, method, min_prompt_tokens, found) as applied:
        done = generate_timed(loaded.model, prompt, max_new_tokens, applied=applied, ends=[ends])
    return _answer(loaded, done, prompt["input_ids"].shape[1], applied)


@torch.inference_mode()
def ask_each(
    loaded: LoadedModel,
    shared: torch.Tensor,
    rests: Sequence[torch.Tensor],
    method: AnyMethod | None,
    *,
    max_new_tokens: int = 64,
    min_prompt_tokens: int = 0,
) -> list[Answer]:
    """Answer several questions about one context greedily, after one prefill of the context.

    Args:
        loaded: The model and its tokenizer, from `load`.
        shared: Token ids [1, T] that all prompts begin with, without any question.
        rests: For each question, the token ids [1, m] that follow `shared`.
        method: The method that the model runs under; None for the plain Hugging Face model.
        max_new_tokens: Largest number of tokens in each answer.
        min_prompt_tokens: A shorter `shared` is not halted.

    Returns:
        One answer per question, with its time, FLOPs and cache size.

    Raises:
        DeltahaltError: What `applying` and `check_each` raise.
    """
    check_each(method)
    with _under(loaded, method, min_prompt_tokens) as applied:
        read = prefill_shared(loaded.model, shared)
    with _under(loaded, method, sys.maxsize):  # no question is so long: each stays whole, and halted tokens may run on
        done = [generate_after(loaded.model, read, rest, max_new_tokens) for rest in rests]
    return [_answer(loaded, one, shared.shape[1], applied) for one in done]


def check_each(method: AnyMethod | None) -> None:
    """Raise InputError if the method cannot answer several questions after one prefill."""
    if method is not None and not (chosen := method_of(method)).shares_prefill:
        raise InputError(
            f"{chosen.name} needs the question in the prefill, but several questions share it: ask one question, or "
            "choose a policy that halts, such as dash"
        )


def together(answers: Sequence[Answer]) -> Answer:
    """Join the answers to several questions after one prefill into one Answer with numbered texts."""
    if len(answers) == 1:
        return answers[0]
    return replace(
        answers[0],
        text="\n".join(f"{number}. {answer.text}" for number, answer in enumerate(answers, 1)),
        new_tokens=sum(answer.new_tokens for answer in answers),
        decode_seconds=sum(answer.decode_seconds for answer in answers),
    )


def _found(loaded: LoadedModel, ids: torch.Tensor, question: str) -> str | None:
    """The question, if it is among the prompt's tokens `ids` [T]."""
    try:
        question_of(question, loaded.tokenizer).positions(ids, len(ids))
    except InputError:
        return None
    return question


def _under(
    loaded: LoadedModel, method: AnyMethod | None, min_prompt_tokens: int, question: str | None = None
) -> AbstractContextManager[Applied | None]:
    if method is None:
        return nullcontext()
    return applying(loaded.model, method, loaded.tokenizer, min_prompt_tokens=min_prompt_tokens, question=question)


def _answer(loaded: LoadedModel, done: Generated, tokens: int, applied: Applied | None) -> Answer:
    model: Any = loaded.model
    shape = ModelShape.of(model.get_decoder().config)
    loads = dense_loads(shape.layers, tokens) if applied is None else applied.halted.report.loads[0]
    return Answer(
        text=str(loaded.tokenizer.decode(done.tokens[0], skip_special_tokens=True)).strip(),
        prompt_tokens=tokens,
        new_tokens=done.tokens.shape[1],
        lengths=tuple(load.attended for load in loads),
        prefill_seconds=done.prefill_seconds,
        decode_seconds=done.decode_seconds,
        flops=true_flops(shape, loads, tokens) if applied is None else applied.flops,
        cache_bytes=done.cache_bytes,
    )


@torch.inference_mode()
def warm_up(loaded: LoadedModel, prompt: dict[str, torch.Tensor]) -> None:
    """Run the beginning of the prompt once, so that the first measured run does not include start-up time."""
    model: Any = loaded.model
    model(prompt["input_ids"][:, :WARM_UP_TOKENS], logits_to_keep=1)
