"""The main job: answer a question about a document, with the full model or a halted one, and measure it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from deltahalt.applying import Applied, applying
from deltahalt.engine import HaltedKV
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.generation import generate_timed
from deltahalt.method import Ends
from deltahalt.methods import AnyMethod
from deltahalt.models import LoadedModel

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
    method: AnyMethod | None,
    *,
    ends: Ends | None = None,
    max_new_tokens: int = 64,
    halted_kv: HaltedKV = "drop",
    min_prompt_tokens: int = 0,
) -> Answer:
    """Answer one prompt (input_ids and attention_mask, [1, T]) greedily; method None is the plain Hugging Face model.

    ends: where the prompt's context lies, if that is known. Raises what `applying` raises.
    """
    model: Any = loaded.model
    shape, tokens = ModelShape.of(model.get_decoder().config), prompt["input_ids"].shape[1]
    context: AbstractContextManager[Applied | None] = nullcontext()
    if method is not None:
        options: dict[str, Any] = {"halted_kv": halted_kv, "min_prompt_tokens": min_prompt_tokens}
        context = applying(model, method, loaded.tokenizer, **options)
    with context as applied:
        done = generate_timed(model, prompt, max_new_tokens, applied=applied, ends=[ends])
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
