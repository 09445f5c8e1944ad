"""Random selection: the baseline that every score has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.selection import drawn


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keep tokens drawn at random from the eligible ones.

    Attributes:
        seed: Seed of the draw. The same seed and prompt length give the same tokens on every device and in every batch.

    Raises:
        PolicyError: For an option out of range.

    Source:
        Baseline; it is strong in UniPruneBench (arXiv 2511.02650).

    Example:
        >>> policy = Random(start=11, pruning_ratio=0.5, seed=7)
        >>> format_policy(policy)
        'random:start=11,pruning_ratio=0.5,seed=7'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "tokens drawn at random by a seed stay active"
    source: ClassVar[str] = "baseline; strong in UniPruneBench (arXiv 2511.02650)"

    seed: int = 0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def score(self, view: LayerView) -> torch.Tensor:
        return drawn(len(view.positions), self.seed).to(view.positions.device)
