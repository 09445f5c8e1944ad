"""A method that halts no tokens in decoder layers: it acts on the prompt, the finished cache or generated tokens."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.policies import Dense
from deltahalt.policies.text import check_types

Ends = tuple[int, int]  # tokens of a prompt before its context, and after it


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of another stage than the LLM's. It halts no token: a subclass overrides what it does instead.

    Raises PolicyError on options of a wrong type.
    """

    name: ClassVar[str] = "method"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = ""  # prompt, KV or decode
    by_token: ClassVar[bool] = False  # whether an answer that is given must be fed as in generation, one by one

    def __post_init__(self) -> None:
        check_types(self)

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Load what this method needs beside the model, so that what cannot be had is refused before anything runs."""

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        """The model with this method at work on it; by default, our engine with nothing halted."""
        return halting(model, Dense())

    def shorten(self, model: Any, tokenizer: Any, ids: torch.Tensor, ends: Ends | None) -> torch.Tensor:
        """The tokens [k] that the model is to read of a prompt `ids` [n]; by default all.

        ends: where the prompt's context lies, if that is known.
        """
        return ids

    def choosing_flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs that `shorten` has the model spend on a prompt of `tokens`."""
        return 0

    def flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs of the model until the first new token, for a prompt of `tokens`: known from the length alone."""
        return true_flops(shape, dense_loads(shape.layers, tokens), tokens)
