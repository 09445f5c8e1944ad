"""A method: anything that `--policy` names. It acts on the prompt, in decoder layers, on the cache or on new tokens."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.errors import UnsupportedError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.policies import Dense
from deltahalt.policies.base import Stage
from deltahalt.policies.options import check_types

Ends = tuple[int, int]  # tokens of a prompt before its context, and after it
Prompts = dict[str, torch.Tensor]  # input_ids and attention_mask, each [B, T], padded on the left
Own = TypeVar("Own", bound="Method")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a model runs under. This one changes nothing: a subclass overrides what it does.

    Raises PolicyError on options of a wrong type.
    """

    name: ClassVar[str] = "method"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = ""  # prompt, LLM, KV or decode
    by_token: ClassVar[bool] = False  # whether a given answer must be run one token at a time, as in generation
    shares_prefill: ClassVar[bool] = False  # whether several questions can follow on one prefill

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def is_dense(self) -> bool:
        """Whether this is the full model, in which every token runs through every layer."""
        return False

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        """Refuse what a model with this configuration cannot do, or what is not installed, before weights are loaded.

        config: the model's. min_prompt_tokens: as in `attach`. Raises what `attach` would raise later.
        """
        self.refuse_settings(min_prompt_tokens)
        ModelShape.of(config.get_text_config())

    def refuse_settings(self, min_prompt_tokens: int) -> None:
        """Raise UnsupportedError for settings of policies alone."""
        if min_prompt_tokens:
            raise UnsupportedError(
                f"{self.name} does not halt tokens in decoder layers, so min_prompt_tokens={min_prompt_tokens} has no "
                "effect: leave it out"
            )

    def attach(
        self, model: Any, tokenizer: Any = None, *, min_prompt_tokens: int = 0
    ) -> AbstractContextManager[Halted]:
        """The model with this method at work on it. min_prompt_tokens: as in `halting`.

        Raises UnsupportedError for settings that this method does not have, and what `prepare` and `attached` raise.
        """
        self.refuse_settings(min_prompt_tokens)
        self.prepare(model, tokenizer)
        return self.attached(model)

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Load what this method needs beside the model, so that what cannot be had is refused before anything runs."""

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        """The model with this method at work on it; by default, our engine with nothing halted."""
        return halting(model, Dense())

    def shorten(self, model: Any, tokenizer: Any, prompts: Prompts, ends: Sequence[Ends | None]) -> Prompts:
        """The prompts as the model is to read them; by default as they are.

        ends: for each prompt where its context lies, if that is known.
        """
        return prompts

    def choosing_flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs that `shorten` has the model spend on a prompt of `tokens`."""
        return 0

    def flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs of the model until the first new token, for a prompt of `tokens`: known from the length alone."""
        return true_flops(shape, dense_loads(shape.layers, tokens), tokens)

    def stages(self, layers: int) -> tuple[Stage, ...] | None:
        """The decisions in a decoder of `layers` layers; None for a method that has a prefill of its own."""
        return None

    def scaled(self: Own, layers: int, to: int) -> Own:
        """The method with its layer indices, in a model of `layers`, at the same depth in one of `to` layers."""
        return scaled(self, layers, to)


def scaled(method: Any, layers: int, to: int) -> Any:
    """A policy or method with its `start`, where it is an index in a model of `layers`, for one of `to` layers."""
    start = getattr(method, "start", None)
    return replace(method, start=start * to // layers) if isinstance(start, int) else method
