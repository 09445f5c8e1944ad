"""Greedy generation with separate times for the prefill and for decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.clock import clock
from deltahalt.engine.cache import cache_bytes, fork
from deltahalt.host.compat import CACHE
from deltahalt.loading.models import end_tokens
from deltahalt.methods.applying import Applied
from deltahalt.methods.base import Ends, Prompts


@dataclass(frozen=True)
class Generated:
    """The tokens generated after the prompts, with their time and cache size.

    tokens: [B, n]. prefill_seconds: until the first new token is known. decode_seconds: for all later tokens.
    cache_bytes: K and V after the prefill.
    """

    tokens: torch.Tensor
    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int


@torch.inference_mode()
def generate_timed(
    model: Any,
    prompts: Prompts,
    limit: int,
    *,
    forced: bool = False,
    applied: Applied | None = None,
    ends: Sequence[Ends | None] | None = None,
) -> Generated:
    """Generate up to `limit` tokens after left-padded prompts (input_ids and attention_mask [B, T]).

    forced: generate exactly `limit` tokens, with the model's end tokens excluded after the first; needed for B > 1.
    applied: the method that the model runs under, which may shorten the prompts first; None for the plain model. ends:
    for each prompt, the number of tokens before and after its context, if known. Raises what the model and the method
    raise.
    """
    begin = clock()
    if applied is not None:
        prompts = applied.shorten(prompts, ends)
    cache = DynamicCache(config=model.config)
    logits = model(**prompts, **{CACHE: cache}, logits_to_keep=1).logits
    sequence = torch.cat([prompts["input_ids"], logits[:, -1:].argmax(dim=-1)], dim=1)
    prefilled = clock()
    held = cache_bytes(cache)
    sequence = _decode(model, sequence, prompts["attention_mask"], cache, limit, forced=forced)
    done = clock()
    tokens = sequence[:, prompts["input_ids"].shape[1] :]
    return Generated(tokens, prefilled - begin, done - prefilled, held)


@dataclass(frozen=True)
class Shared:
    """A prefill of token ids [1, T] that several prompts begin with: its cache, its seconds, and bytes of K and V."""

    ids: torch.Tensor
    cache: DynamicCache
    prefill_seconds: float
    cache_bytes: int


@torch.inference_mode()
def prefill_shared(model: Any, ids: torch.Tensor) -> Shared:
    """Prefill `ids` [1, T], which several prompts begin with. Raises what the model raises."""
    begin, cache = clock(), DynamicCache(config=model.config)
    model(input_ids=ids, **{CACHE: cache}, logits_to_keep=1)
    return Shared(ids, cache, clock() - begin, cache_bytes(cache))


@torch.inference_mode()
def generate_after(model: Any, shared: Shared, rest: torch.Tensor, limit: int) -> Generated:
    """Generate up to `limit` tokens after `shared` and the token ids `rest` [1, m]; the shared cache does not change.

    decode_seconds include the prefill of the rest. Raises what the model raises.
    """
    cache, start = fork(shared.cache), clock()
    logits = model(input_ids=rest, **{CACHE: cache}, logits_to_keep=1).logits
    prompt = torch.cat([shared.ids, rest], dim=1)
    sequence = torch.cat([prompt, logits[:, -1:].argmax(dim=-1)], dim=1)
    sequence = _decode(model, sequence, torch.ones_like(prompt), cache, limit)
    tokens = sequence[:, prompt.shape[1] :]
    return Generated(tokens, shared.prefill_seconds, clock() - start, shared.cache_bytes)


def _decode(
    model: Any, sequence: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, limit: int, *, forced: bool = False
) -> torch.Tensor:
    """Return `sequence` [B, T + 1] and the tokens after it, `limit` new ones at most. mask: [B, T], of the prompts."""
    if limit <= 1 or not (forced or int(sequence[0, -1]) not in end_tokens(model)):
        return sequence
    longer: torch.Tensor = model.generate(
        sequence,
        attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1),
        **{CACHE: cache},
        max_new_tokens=limit - 1,
        min_new_tokens=limit - 1 if forced else None,
        do_sample=False,
        pad_token_id=0,  # not used: all rows have one length
    )
    return longer
