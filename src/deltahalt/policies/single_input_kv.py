"""SwiftKV without its training: deeper layers read the prompt from the states that one layer left."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import LayerView, Policy, Scope
from deltahalt.policies.halted_states import LastState


@dataclass(frozen=True, kw_only=True)
class SingleInputKV(Policy):
    """Halt all but the latest tokens, and let deeper layers make K and V of the states that they stopped at.

    Nothing is chosen and nothing forgotten: every layer's cache holds the whole prompt, and no question is looked at.
    keep_last: these run through all layers; the prompt's question and the turn's end belong there.

    Raises PolicyError for a protected beginning or a scope, since halted tokens must all come before active ones.
    """

    name: ClassVar[str] = "single-input-kv"
    summary: ClassVar[str] = "the latest stay active; the others stop, and serve K/V of where they stopped"
    source: ClassVar[str] = "SwiftKV's SingleInputKV (arXiv 2410.03960), without its distillation"
    pointwise: ClassVar[bool] = True

    start: float | int = 0.6
    pruning_ratio: float = 1.0
    keep_first: int = 0
    keep_last: int = 128
    scope: Scope = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_first or self.scope != "all" or self.chunk != 1:
            raise PolicyError(f"{self.name} keeps the latest tokens of all: leave keep_first, scope and chunk alone")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def halted_states(self) -> LastState:
        return LastState(in_order=True)

    def score(self, view: LayerView) -> torch.Tensor:
        return view.positions.float()
