"""Key norm: a small key attracts attention from everywhere, so large keys halt first. Never sees the question."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import LayerView, Policy


@dataclass(frozen=True, kw_only=True)
class KeyNorm(Policy):
    """Keep the tokens whose keys at layer l_s have the smallest L2 norm, averaged over the key heads."""

    name: ClassVar[str] = "key-norm"
    summary: ClassVar[str] = "smallest key norm stays active (query-free)"
    source: ClassVar[str] = "Devoto et al. 2024 (arXiv 2406.11430), turned from cache eviction into halting"
    pointwise: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys"})

    def score(self, view: LayerView) -> torch.Tensor:
        scores: torch.Tensor = torch.linalg.vector_norm(view.keys(), dim=-1, dtype=torch.float32).mean(dim=0)
        return -scores
