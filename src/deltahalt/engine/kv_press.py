"""Halting, and a KV press of kvpress on what halting leaves in each layer's cache."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from kvpress import BasePress, KeyDiffPress, KnormPress, SnapKVPress, StreamingLLMPress, TOVAPress

from deltahalt.engine.attach import halting
from deltahalt.engine.cache import HaltedCache, Segment
from deltahalt.engine.halted import Halted
from deltahalt.errors import UnsupportedError
from deltahalt.host.compat import CACHE, decoder_arguments
from deltahalt.host.families.base import Module
from deltahalt.policies.base import Policy

# KV presses that score a layer's entries from that layer only, and drop equally many in each head. Others use an
# entry's index as its position, or give layers of one length different lengths.
FOLLOWING = (SnapKVPress, TOVAPress, KnormPress, KeyDiffPress, StreamingLLMPress)


@contextmanager
def pressed(model: Module, policy: Policy, press: BasePress | None, name: str) -> Iterator[Halted]:
    """Halt by `policy`, and let `press`, if there is one, compress what each layer holds, in prefills of a context.

    name: of the press that halts, for errors. Raises UnsupportedError for a press that cannot follow halting.
    """
    with ExitStack() as undo:
        halted = undo.enter_context(halting(model, policy))
        decoder = halted.host.module
        undo.callback(decoder.register_forward_pre_hook(partial(_check, press, name), with_kwargs=True).remove)
        if model is not decoder:
            hook = model.register_forward_pre_hook(_want_last_logits, with_kwargs=True, prepend=True)
            undo.callback(hook.remove)
        if press is not None:
            undo.enter_context(_compressing(halted, press))
        yield halted


def _check(own: BasePress | None, name: str, decoder: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse presses other than `own`, and padding, which `own` ignores (forward pre-hook of the decoder)."""
    for layer in decoder.layers:
        for hook in layer.self_attn._forward_hooks.values():
            press = getattr(hook, "__self__", None)
            if isinstance(press, BasePress) and press is not own:
                raise UnsupportedError(
                    f"{type(press).__name__} is active on the halting model: give it to the press that halts, as "
                    f"{name}(then={type(press).__name__}(...))"
                )
    mask = decoder_arguments(decoder, args, kwargs).get("attention_mask")
    if own is not None and isinstance(mask, torch.Tensor) and not mask.all():
        raise UnsupportedError(f"{type(own).__name__} would score padding as tokens: run prompts one by one")


def _want_last_logits(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Set `logits_to_keep` to 1 in a prefill that does not set it (forward pre-hook of the outer model).

    Users of kvpress call the model for its cache and do not set it, but halted tokens have no logits.
    """
    names = list(signature(type(model).forward).parameters)
    cache = (dict(zip(names, (model, *args), strict=False)) | kwargs).get(CACHE)
    if cache is None or cache.get_seq_length() == 0:
        kwargs = {"logits_to_keep": 1} | kwargs
    return args, kwargs


@contextmanager
def _compressing(halted: Halted, press: BasePress) -> Iterator[None]:
    """Let a KV press compress each layer's cache after the layer's attention, in every prefill of the block."""
    name = type(press).__name__
    if type(press) not in FOLLOWING:
        known = ", ".join(known.__name__ for known in FOLLOWING)
        raise UnsupportedError(f"{name} cannot follow halting: give one of {known}")
    if any(halted.shape.windows):
        raise UnsupportedError(f"{name} cannot follow halting in a model with sliding-window layers: leave `then` out")
    with ExitStack() as undo:
        for layer in halted.host.module.layers:
            undo.callback(layer.self_attn.register_forward_pre_hook(_add_cache_position, with_kwargs=True).remove)
            undo.callback(layer.self_attn.register_forward_hook(press.forward_hook, with_kwargs=True).remove)
        undo.callback(halted.host.module.register_forward_hook(_account).remove)
        yield


def _add_cache_position(attention: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Add `cache_position`, the indices of the call's tokens in the layer's cache (forward pre-hook of an attention).

    kvpress treats a call as the prefill if its tokens are all that the cache holds.
    """
    cache, hidden = kwargs[CACHE], kwargs["hidden_states"]
    if cache is None:
        raise UnsupportedError("a KV press has nothing to compress without a cache: leave use_cache=True")
    past = cache.layers[attention.layer_idx].get_seq_length() if attention.layer_idx < len(cache.layers) else 0
    return args, kwargs | {"cache_position": torch.arange(past, past + hidden.shape[1], device=hidden.device)}


def _account(decoder: Module, args: tuple[Any, ...], output: Any) -> None:
    """Update the cache's records after a prefill to what the KV press kept (forward hook of the decoder).

    Each head now holds its own choice of tokens, so no last tokens are in every head, and none can be cropped.
    """
    cache, (rows, width) = getattr(output, CACHE), output.last_hidden_state.shape[:2]
    if cache.layers[0].keys.shape[-2] > width:
        return  # not a prefill: the layer holds more than this call's tokens
    if not isinstance(cache, HaltedCache):  # the prompt was too short for halting
        slots = torch.arange(width, device=output.last_hidden_state.device).expand(rows, -1)
        HaltedCache.adopt(cache, [Segment(0, slots, padded=False)], seen=width)
    cache.tail = 0
