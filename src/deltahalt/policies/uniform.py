"""Uniform selection: tokens, or chunks of them, at even distances stay active."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.selection import evenly, evenly_in_chunks


@dataclass(frozen=True, kw_only=True)
class Uniform(Policy):
    """Keep eligible tokens at even distances: the middle of each of K equal spans, for K tokens that stay.

    With `chunk` above 1, whole chunks at even distances stay. The options are those of `Policy`.

    Raises:
        PolicyError: For an option out of range.

    Source:
        Baseline.

    Example:
        >>> policy = Uniform(start=11, pruning_ratio=0.5, chunk=64)
        >>> format_policy(policy)
        'uniform:start=11,pruning_ratio=0.5,chunk=64'
        >>> policy.kept(4096)
        2096
    """

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
