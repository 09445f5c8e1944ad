"""The main job: answer questions about a document, with the full model or a halted one, and measure it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltahalt.answering.generation import Generated, generate_each, generate_timed
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
    """One answer and what it took.

    prompt_tokens: T, of several questions what they share. lengths: tokens that each layer's attention ran on in the
    prefill. prefill_seconds: until the first answer token is known, of several questions until what they share is read.
    decode_seconds: what comes after. flops: true FLOPs of the prefill. cache_bytes: K and V after it.
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
    max_new_tokens: int = 64,
    min_prompt_tokens: int = 0,
) -> Answer:
    """Answer one prompt (input_ids and attention_mask, [1, T]) greedily; method None is the plain Hugging Face model.

    ends: where the prompt's context lies, if that is known. Raises what `applying` raises.
    """
    with _under(loaded, method, min_prompt_tokens) as applied:
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
    """Answer each of `rests` [1, m], token ids that follow on one prefill of `shared` [1, T], which no question is in.

    Raises what `applying` and `check_each` raise.
    """
    check_each(method)
    with _under(loaded, method, min_prompt_tokens) as applied:
        done = generate_each(loaded.model, shared, rests, max_new_tokens)
        return [_answer(loaded, one, shared.shape[1], applied) for one in done]


def check_each(method: AnyMethod | None) -> None:
    """Raise InputError for a method that cannot answer several questions after one prefill, as policies can."""
    if method is not None and not (chosen := method_of(method)).shares_prefill:
        raise InputError(f"{chosen.name} acts on a prompt with its question: ask one question, or name a policy")


def together(answers: Sequence[Answer]) -> Answer:
    """Answers to several questions after one prefill as one, numbered in its text."""
    if len(answers) == 1:
        return answers[0]
    return replace(
        answers[0],
        text="\n".join(f"{number}. {answer.text}" for number, answer in enumerate(answers, 1)),
        new_tokens=sum(answer.new_tokens for answer in answers),
        decode_seconds=sum(answer.decode_seconds for answer in answers),
    )


def _under(
    loaded: LoadedModel, method: AnyMethod | None, min_prompt_tokens: int
) -> AbstractContextManager[Applied | None]:
    if method is None:
        return nullcontext()
    return applying(loaded.model, method, loaded.tokenizer, min_prompt_tokens=min_prompt_tokens)


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
    """Run the prompt's beginning once, so that the first measured run does not pay for start-up."""
    model: Any = loaded.model
    model(prompt["input_ids"][:, :WARM_UP_TOKENS], logits_to_keep=1)
