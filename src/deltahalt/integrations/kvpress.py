"""DASH as presses of kvpress, on the same engine, and a pipeline that answers questions from their caches."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from kvpress import BasePress, KVPressTextGenerationPipeline
from torch import nn
from transformers import Cache

from deltahalt.engine.attach import halting
from deltahalt.engine.cache import HaltedCache, fork
from deltahalt.engine.halted import Halted
from deltahalt.engine.kv_press import pressed
from deltahalt.errors import UnsupportedError
from deltahalt.host.families.base import Module
from deltahalt.policies import Dash, DashLayer, Dense
from deltahalt.policies.base import Policy


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
        then: A KV press that compresses what each layer holds after halting, of a class in `engine.kv_press.FOLLOWING`.

    Raises:
        PolicyError: For a setting out of range.
        UnsupportedError: For a model that cannot be halted, or another press that does not work with halting.

    Example:
        >>> with DeltaPress(compression_ratio=0.5)(model) as halted:  # doctest: +SKIP
        ...     model(input_ids, past_key_values=cache)  # a context of 4096 tokens
        >>> len(halted.report.kept[0])  # doctest: +SKIP
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

    def __call__(self, model: Module) -> AbstractContextManager[Halted]:
        return pressed(model, self.policy, self.then, type(self).__name__)

    def forward_hook(self, module: nn.Module, input: Any, kwargs: dict[str, Any], output: Any) -> Any:  # noqa: A002
        raise UnsupportedError(
            f"{type(self).__name__} halts tokens before a layer runs and cannot be part of another press: give it the "
            f"other press, as {type(self).__name__}(then=SnapKVPress(...))"
        )


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
