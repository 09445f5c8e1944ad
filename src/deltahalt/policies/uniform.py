"""Uniform selection: every so-many-th token."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import LayerView, Policy
from deltahalt.policies.selection import evenly


@dataclass(frozen=True, kw_only=True)
class Uniform(Policy):
    """Keep eligible tokens at even distances: the middles of `count` equal spans."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "evenly spaced tokens stay active"
    source: ClassVar[str] = "baseline"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk != 1:
            raise PolicyError("uniform keeps lone tokens at even distances: leave chunk at 1")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def score(self, view: LayerView) -> torch.Tensor:
        return torch.zeros(len(view.positions), device=view.positions.device)

    def select(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        return evenly(len(scores), count).to(scores.device)
