"""DART in the ViT: keep what resembles a few pivots least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class DartViT(GroupHalting):
    """Keep `pivots` groups with the largest keys (L1 norm) and, for each pivot in turn, the groups least similar to it.

    Similarity is the cosine of states under the next block's norm, averaged over a group. The published code picks
    single patches, of which the merger then takes any four for a square; whole groups keep their coordinates.

    pivots: number of groups that the others are compared with, 1 or more.
    """

    name: ClassVar[str] = "dart-vit"
    summary: ClassVar[str] = "least similar to a few pivots stays active"
    source: ClassVar[str] = "DART (arXiv 2502.11494), as in its authors' ViT stage: block 3 of 32"

    pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivots < 1:
            raise PolicyError(f"pivots is {self.pivots}; give 1 or more")

    def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
        pivots = min(self.pivots, count)
        norms = view.per_group(view.keys().float().abs().sum(dim=(0, 2)))
        chosen = list(norms.argsort(descending=True, stable=True)[:pivots].split(1))
        features = F.normalize(view.per_group(view.normed(states).flatten(0, 1)), dim=-1)  # [n, D]
        pool = torch.ones(len(features), dtype=torch.bool, device=features.device).index_fill(0, torch.cat(chosen), 0)
        for turn, pivot in enumerate(chosen[:pivots]):
            picks = (count - 1 - turn) // pivots  # even shares of what is left, the remainder to the first
            likeness = (features @ features[pivot[0]]).masked_fill(~pool, torch.inf)
            chosen.append(likeness.argsort(stable=True)[:picks])
            pool[chosen[-1]] = False
        return torch.cat(chosen).sort().values
