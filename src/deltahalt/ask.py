"""The main job: answer a question about a document, with the full model or a halted one, and measure it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from deltahalt.attach import halting
from deltahalt.engine import Halted, HaltedKV
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.generation import generate_timed
from deltahalt.models import LoadedModel
from deltahalt.policy import AnyPolicy

WARM_UP_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    """One answer and what it took.

    prompt_tokens: T. lengths: tokens that each layer's attention ran on in the prefill. prefill_seconds: until the
    first answer token is known. decode_seconds: all later tokens. flops: true FLOPs of the prefill. cache_bytes: K and
    V after it.
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
    policy: AnyPolicy | None,
    *,
    max_new_tokens: int = 64,
    halted_kv: HaltedKV = "drop",
    min_prompt_tokens: int = 0,
) -> Answer:
    """Answer one prompt (input_ids and attention_mask, [1, T]) greedily; policy None is the plain Hugging Face model.

    Raises what `halting` raises.
    """
    model: Any = loaded.model
    shape, tokens = ModelShape.of(model.get_decoder().config), prompt["input_ids"].shape[1]
    context: AbstractContextManager[Halted | None] = nullcontext()
    if policy is not None:
        context = halting(model, policy, halted_kv=halted_kv, min_prompt_tokens=min_prompt_tokens)
    with context as halted:
        done = generate_timed(model, prompt, max_new_tokens)
    loads = dense_loads(shape.layers, tokens) if halted is None else halted.report.loads[0]
    return Answer(
        text=str(loaded.tokenizer.decode(done.tokens[0], skip_special_tokens=True)).strip(),
        prompt_tokens=tokens,
        new_tokens=done.tokens.shape[1],
        lengths=tuple(load.attended for load in loads),
        prefill_seconds=done.prefill_seconds,
        decode_seconds=done.decode_seconds,
        flops=true_flops(shape, loads, tokens),
        cache_bytes=done.cache_bytes,
    )


@torch.inference_mode()
def warm_up(loaded: LoadedModel, prompt: dict[str, torch.Tensor]) -> None:
    """Run the prompt's beginning once, so that the first measured run does not pay for start-up."""
    model: Any = loaded.model
    model(prompt["input_ids"][:, :WARM_UP_TOKENS], logits_to_keep=1)
