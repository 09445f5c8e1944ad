"""DASH as presses of kvpress, over the same engine, and the pipeline that asks questions about what they leave."""

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

# KV presses that score a layer's entries by what the layer itself holds, and drop as many of each head. Others take an
# entry's index for its position, or leave layers of one length with different lengths.
FOLLOWING = (SnapKVPress, TOVAPress, KnormPress, KeyDiffPress, StreamingLLMPress)


@dataclass
class DeltaPress(BasePress):
    """Halt prompt tokens by their attention-branch delta, ||U_t||_2 (DASH, Eq. 1-3), while kvpress runs a context.

    compression_ratio: share rho of the eligible tokens that is halted, in [0, 1]. start_ratio: the layer that decides,
    floor(start_ratio * L). keep_first_n, keep_last_n: tokens at either end that are never halted. then: a KV press that
    compresses what each layer still holds, one of `FOLLOWING`.

    Used as any press, `with press(model) as halted:`, where `halted.report` tells what the latest prefill did. A
    prefill gives the last token's logits where the caller does not say how many are wanted. Questions are exact in a
    `HaltingPipeline`, or inside the block; kvpress's own pipeline is refused when it asks the first one.
    Raises PolicyError for settings out of range and UnsupportedError for what cannot be halted, or composed with it.
    """

    compression_ratio: float = Dash.pruning_ratio
    start_ratio: float = Dash.start
    keep_first_n: int = Dash.keep_first
    keep_last_n: int = Dash.keep_last
    then: BasePress | None = None

    method: ClassVar[type[Policy]] = Dash

    def __post_init__(self) -> None:
        _ = self.policy  # settings out of range are told where they are given

    @property
    def policy(self) -> Policy:
        """The policy of these settings, which kvpress's evaluation changes after the press is made."""
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
            f"{type(self).__name__} halts tokens before a layer runs, and cannot be part of another press: give it the "
            "other one, DeltaPress(then=SnapKVPress(...))"
        )

    def _check(self, decoder: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder: refuse other presses on the same model, and padding that `then` ignores."""
        for layer in decoder.layers:
            for hook in layer.self_attn._forward_hooks.values():
                press = getattr(hook, "__self__", None)
                if isinstance(press, BasePress) and press is not self.then:
                    raise UnsupportedError(
                        f"{type(press).__name__} is at work on the halting model: give it to the press that halts, "
                        "DeltaPress(then=...)"
                    )
        mask = decoder_arguments(decoder, args, kwargs).get("attention_mask")
        if self.then is not None and isinstance(mask, torch.Tensor) and not mask.all():
            raise UnsupportedError(f"{type(self.then).__name__} takes padding for tokens: run prompts one by one")


@dataclass
class DeltaLayerPress(DeltaPress):
    """Halt prompt tokens by their whole-layer delta, ||H_out - H_in||_2 (DASH, Sec. 4.5; the reference's l_nr variant).

    Settings and errors are those of `DeltaPress`.
    """

    method: ClassVar[type[Policy]] = DashLayer


class HaltingPipeline(KVPressTextGenerationPipeline):
    """kvpress's pipeline, with questions that read a halted context exactly; for any other press it is kvpress's own.

    kvpress asks its questions after the press has let go of the model. There the host builds one mask for all layers,
    as long as layer 0, which does not fit layers that hold fewer tokens. So here a question runs in our decoder loop,
    on a fork of the context's cache: nothing has to be removed after an answer, whatever the layers' windows.
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
    """Forward pre-hook of the outer model: a prefill that does not say how many logits it wants gets the last ones.

    kvpress's users call the model as it is, for the cache; halted tokens have no logits.
    """
    names = list(signature(type(model).forward).parameters)
    cache = (dict(zip(names, (model, *args), strict=False)) | kwargs).get(CACHE)
    if cache is None or cache.get_seq_length() == 0:
        kwargs = {"logits_to_keep": 1} | kwargs
    return args, kwargs


@contextmanager
def _compressing(halted: Halted, press: BasePress) -> Iterator[None]:
    """Let a KV press compress what each layer holds after its attention has run, in every prefill of the block."""
    name = type(press).__name__
    if type(press) not in FOLLOWING:
        known = ", ".join(known.__name__ for known in FOLLOWING)
        raise UnsupportedError(f"{name} cannot follow halting; use one of {known}")
    if any(halted.shape.windows):
        raise UnsupportedError(f"{name} cannot follow halting in a model with sliding-window layers")
    with ExitStack() as undo:
        for layer in halted.host.module.layers:
            undo.callback(layer.self_attn.register_forward_pre_hook(_tell_phase, with_kwargs=True).remove)
            undo.callback(layer.self_attn.register_forward_hook(press.forward_hook, with_kwargs=True).remove)
        undo.callback(halted.host.module.register_forward_hook(_account).remove)
        yield


def _tell_phase(attention: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of an attention module: say where the layer's tokens lie among those that it holds.

    kvpress takes a call for the prefill if these are all there are.
    """
    cache, hidden = kwargs[CACHE], kwargs["hidden_states"]
    if cache is None:
        raise UnsupportedError("a KV press has nothing to compress without a cache: leave use_cache on")
    past = cache.layers[attention.layer_idx].get_seq_length() if attention.layer_idx < len(cache.layers) else 0
    return args, kwargs | {"cache_position": torch.arange(past, past + hidden.shape[1], device=hidden.device)}


def _account(decoder: Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of the decoder: after a prefill, keep the cache's books in step with what the KV press has left.

    Each head holds tokens of its own choice, all of them older than any to come; no tail is left that could be cropped.
    """
    cache, (rows, width) = getattr(output, CACHE), output.last_hidden_state.shape[:2]
    if cache.layers[0].keys.shape[-2] > width:
        return  # not a prefill: the layer holds more than this call's tokens
    if not isinstance(cache, HaltedCache):  # too short a prompt to halt tokens of
        slots = torch.arange(width, device=output.last_hidden_state.device).expand(rows, -1)
        HaltedCache.adopt(cache, [Segment(0, slots, padded=False)], seen=width, tail=0)
    cache.tail = 0
