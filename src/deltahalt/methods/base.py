"""The interface of a method. It acts on the prompt, in decoder layers, on the cache or on generated tokens."""

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

Ends = tuple[int, int]  # number of tokens of a prompt before its context, and after it
Asked = str | Sequence[str] | Sequence[tuple[int, int]]  # a question: its text, several texts, or spans of tokens
Prompts = dict[str, torch.Tensor]  # input_ids and attention_mask, each [B, T], padded on the left
Own = TypeVar("Own", bound="Method")


@dataclass(frozen=True, kw_only=True)
class Method:
    """The base of all methods: anything that `--policy` takes, at any stage. A policy becomes one as `Halting`.

    This class does not change the model. A subclass gives a `name`, a `summary`, a `source` and a `stage`; its fields
    are its options. It overrides `shorten` (prompt stage) or `attached` (all others), and `flops`.

    Raises:
        PolicyError: For an option of a wrong type.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class FirstTokens(Method):
        ...     name, stage = "first-tokens", "prompt"
        ...     count: int = 64
        ...
        ...     def shorten(self, model, tokenizer, prompts, ends):
        ...         return {name: rows[:, : self.count] for name, rows in prompts.items()}
        >>> ids = torch.arange(100)[None]
        >>> short = FirstTokens(count=32).shorten(None, None, {"input_ids": ids}, [None])
        >>> short["input_ids"].shape
        torch.Size([1, 32])
    """

    name: ClassVar[str] = "method"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = ""  # prompt, LLM, KV or decode
    by_token: ClassVar[bool] = False  # whether a given answer must run one token at a time, as in generation
    reads_ends: ClassVar[bool] = False  # whether `shorten` uses where the context of a prompt is
    shares_prefill: ClassVar[bool] = False  # whether several questions can continue one prefill

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def is_dense(self) -> bool:
        """Whether this is the full model, in which every token runs through every layer."""
        return False

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        """Raise the errors of `attach` that follow from the model's configuration, before weights are loaded.

        These are for a model that does not support the method, a package that is not installed, and wrong settings.
        """
        self.refuse_settings(min_prompt_tokens)
        ModelShape.of(config.get_text_config())

    def refuse_settings(self, min_prompt_tokens: int) -> None:
        """Raise UnsupportedError for settings that only policies have."""
        if min_prompt_tokens:
            raise UnsupportedError(
                f"{self.name} does not halt tokens in decoder layers, so min_prompt_tokens={min_prompt_tokens} has no "
                "effect: leave it out"
            )

    @property
    def reads_question(self) -> bool:
        """Whether the method uses a question that is known."""
        return False

    def attach(
        self, model: Any, tokenizer: Any = None, *, min_prompt_tokens: int = 0, question: Asked | None = None
    ) -> AbstractContextManager[Halted]:
        """A context in which the model runs under this method. min_prompt_tokens, question: as in `halting`.

        Raises UnsupportedError for settings that this method does not have, and what `prepare` and `attached` raise.
        """
        self.refuse_settings(min_prompt_tokens)
        if question is not None:
            raise UnsupportedError(f"{self.name} does not read the question: leave question out")
        self.prepare(model, tokenizer)
        return self.attached(model)

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Load what this method needs beside the model. Raises an error for what is missing, before anything runs."""

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        """A context in which the model runs under this method; by default, our engine without any halting."""
        return halting(model, Dense())

    def shorten(self, model: Any, tokenizer: Any, prompts: Prompts, ends: Sequence[Ends | None]) -> Prompts:
        """The prompts to give to the model; by default the same ones.

        ends: for each prompt the number of tokens before and after its context; None where it is unknown.
        """
        return prompts

    def choosing_flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs of the model in `shorten`, for a prompt of `tokens` tokens."""
        return 0

    def flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs of the model until the first new token, for a prompt of `tokens` tokens."""
        return true_flops(shape, dense_loads(shape.layers, tokens), tokens)

    def stages(self, layers: int) -> tuple[Stage, ...] | None:
        """The stages of a policy in a decoder of `layers` layers; None for a method that is not a policy."""
        return None

    def scaled(self: Own, layers: int, to: int) -> Own:
        """The method for a model of `to` layers, with layer indices at the same relative depth as in `layers`."""
        return scaled(self, layers, to)


def scaled(method: Any, layers: int, to: int) -> Any:
    """A policy or method for a model of `to` layers; a `start` that is an index is one in a model of `layers`."""
    start = getattr(method, "start", None)
    return replace(method, start=start * to // layers) if isinstance(start, int) else method
