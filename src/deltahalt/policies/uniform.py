"""Uniform selection: tokens, or chunks, at even distances."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import LayerView, Policy
from deltahalt.policies.selection import evenly, evenly_in_chunks


@dataclass(frozen=True, kw_only=True)
class Uniform(Policy):
    """Keep eligible tokens at even distances: the middles of `count` equal spans; with `chunk`, whole chunks so."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "evenly spaced tokens stay active"
    source: ClassVar[str] = "baseline"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def score(self, view: LayerView) -> torch.Tensor:
        return torch.zeros(len(view.positions), device=view.positions.device)

    def select(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        index = evenly(len(scores), count) if self.chunk == 1 else evenly_in_chunks(len(scores), count, self.chunk)
        return index.to(scores.device)
