"""DASH as presses of kvpress, on the same engine, and a pipeline that answers questions from their caches."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
from kvpress import (
    BasePress,
    KeyDiffPress,
    KnormPress,
    KVPressTextGenerationPipeline,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from torch import nn
from transformers import Cache

from deltahalt.engine.attach import halting
from deltahalt.engine.cache import HaltedCache, Segment, fork
from deltahalt.engine.halted import Halted
from deltahalt.errors import UnsupportedError
from deltahalt.host.compat import CACHE, decoder_arguments
from deltahalt.host.families.base import Module
from deltahalt.policies import Dash, DashLayer, Dense
from deltahalt.policies.base import Policy

# KV presses that score a layer's entries from that layer only, and drop equally many in each head. Others use an
# entry's index as its position, or give layers of one length different lengths.
FOLLOWING = (SnapKVPress, TOVAPress, KnormPress, KeyDiffPress, StreamingLLMPress)


@dataclass
class DeltaPress(BasePress):
    """Halt prompt tokens by their attention-branch delta, ||U_t||_2 (DASH, Eq. 1-3), in prefills of a context.

    A press is used as `with press(model) as halted:`, where `halted.report` describes the latest prefill. A prefill
    returns the last token's logits only, unless the call sets `logits_to_keep`. Answers to questions are exact in a
    `HaltingPipeline` or inside the block; kvpress's own pipeline raises UnsupportedError at its first question.

    Args:
        compression_ratio: Share rho of the eligible tokens that is halted, in [0, 1].
        start_ratio: The layer that decides is floor(start_ratio * L), in [0, 1).
        keep_first_n: Number of tokens at the start of the context that are never halted.
        keep_last_n: Number of tokens at the end of the context that are never halted, 1 or more.
        then: A KV press, of a class in `FOLLOWING`, that compresses what each layer holds after halting.

    Raises:
        PolicyError: For a setting out of range.
        UnsupportedError: For a model that cannot be halted, or another press that does not work with halting.

    Example:
        >>> with DeltaPress(compression_ratio=0.5)(model) as halted:  # doctest: +SKIP
        ...     model(input_ids, past_key_values=cache)  # a context of 4096 tokens
        >>> halted.report.lengths[0][-1]  # doctest: +SKIP
        2096
    """

    compression_ratio: float = Dash.pruning_ratio
    start_ratio: float = Dash.start
    keep_first_n: int = Dash.keep_first
    keep_last_n: int = Dash.keep_last
    then: BasePress | None = None

    method: ClassVar[type[Policy]] = Dash

    def __post_init__(self) -> None:
        _ = self.policy  # raises PolicyError for settings out of range

    @property
    def policy(self) -> Policy:
        """The policy with the current settings; kvpress's evaluation changes them after it created the press."""
        start = float(self.start_ratio) if isinstance(self.start_ratio, int) else self.start_ratio
        return self.method(
            start=start,  # never a layer's index
            pruning_ratio=self.compression_ratio,
            keep_first=self.keep_first_n,
            keep_last=self.keep_last_n,
        )

    @contextmanager
    def __call__(self, model: Module) -> Iterator[Halted]:
        with ExitStack() as undo:
            halted = undo.enter_context(halting(model, self.policy))
            decoder = halted.host.module
            undo.callback(decoder.register_forward_pre_hook(self._check, with_kwargs=True).remove)
            if model is not decoder:
                hook = model.register_forward_pre_hook(_want_last_logits, with_kwargs=True, prepend=True)
                undo.callback(hook.remove)
            if self.then is not None:
                undo.enter_context(_compressing(halted, self.then))
            yield halted

    def forward_hook(self, module: nn.Module, input: Any, kwargs: dict[str, Any], output: Any) -> Any:  # noqa: A002
        raise UnsupportedError(
            f"{type(self).__name__} halts tokens before a layer runs and cannot be part of another press: give it the "
            f"other press, as {type(self).__name__}(then=SnapKVPress(...))"
        )

    def _check(self, decoder: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse other presses on the model, and padding, which `then` ignores (forward pre-hook of the decoder)."""
        for layer in decoder.layers:
            for hook in layer.self_attn._forward_hooks.values():
                press = getattr(hook, "__self__", None)
                if isinstance(press, BasePress) and press is not self.then:
                    raise UnsupportedError(
                        f"{type(press).__name__} is active on the halting model: give it to the press that halts, as "
                        f"{type(self).__name__}(then={type(press).__name__}(...))"
                    )
        mask = decoder_arguments(decoder, args, kwargs).get("attention_mask")
        if self.then is not None and isinstance(mask, torch.Tensor) and not mask.all():
            raise UnsupportedError(f"{type(self.then).__name__} would score padding as tokens: run prompts one by one")


@dataclass
class DeltaLayerPress(DeltaPress):
    """Halt prompt tokens by their whole-layer delta, ||H_out - H_in||_2 (DASH, Sec. 4.5; variant l_nr of its code).

    Settings and errors are those of `DeltaPress`.
    """

    method: ClassVar[type[Policy]] = DashLayer


class HaltingPipeline(KVPressTextGenerationPipeline):
    """kvpress's pipeline with exact answers from a halted context; with any other press it is kvpress's own pipeline.

    kvpress runs its questions after the press has left the model. The host then builds one mask for all layers, of the
    length of layer 0, which does not fit layers that hold fewer tokens. Here a question runs in deltahalt's decoder
    loop, on a fork of the context's cache, so nothing has to be removed from the cache after an answer.
    """

    def generate_answer(
        self, question_ids: torch.Tensor, cache: Cache, context_length: int, max_new_tokens: int
    ) -> str:
        answer = super().generate_answer
        if not isinstance(cache, HaltedCache):
            return answer(question_ids, cache, context_length, max_new_tokens)
        with halting(self.model, Dense()):
            return answer(question_ids, fork(cache), context_length, max_new_tokens)


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
