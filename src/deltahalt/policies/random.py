"""Random selection: the floor that every signal has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import LayerView, Policy
from deltahalt.policies.selection import drawn


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keep tokens drawn at random.

    seed: draws the tokens. The same seed and length give the same tokens, whatever the device or batch.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "a seeded random draw stays active"
    source: ClassVar[str] = "baseline; strong in UniPruneBench (arXiv 2511.02650)"

    seed: int = 0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def score(self, view: LayerView) -> torch.Tensor:
        return drawn(len(view.positions), self.seed).to(view.positions.device)
