"""DART in the ViT, which keeps the groups that are least similar to a few pivot groups."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from deltahalt.policies.options import require_at_least
from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class DartViT(GroupHalting):
    """Keep the `pivots` groups with the largest keys (L1 norm), and for each pivot the groups least similar to it.

    Similarity is the cosine of the groups' states after the next block's norm, averaged over patches. The published
    code picks single patches, so the merger joins four patches that need not be neighbours. Here whole groups are
    picked, which keep their coordinates.

    Args:
        pivots: Number of groups that the others are compared with, 1 or more.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> DartViT(retain=0.25, pivots=8).kept(256)
        64
    """

    name: ClassVar[str] = "dart-vit"
    summary: ClassVar[str] = "groups least similar to a few pivots stay active"
    source: ClassVar[str] = "DART (arXiv 2502.11494), ViT stage of its authors' code: block 3 of 32"

    pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "pivots")

    def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
        pivots = min(self.pivots, count)
        norms = view.per_group(view.keys().float().abs().sum(dim=(0, 2)))
        chosen = list(norms.argsort(descending=True, stable=True)[:pivots].split(1))
        features = F.normalize(view.per_group(view.normed(states).flatten(0, 1)), dim=-1)  # [n, D]
        pool = torch.ones(len(features), dtype=torch.bool, device=features.device).index_fill(0, torch.cat(chosen), 0)
        for turn, pivot in enumerate(chosen[:pivots]):
            picks = (count - 1 - turn) // pivots  # the other groups in even shares; the first pivots get the remainder
            likeness = (features @ features[pivot[0]]).masked_fill(~pool, torch.inf)
            chosen.append(likeness.argsort(stable=True)[:picks])
            pool[chosen[-1]] = False
        return torch.cat(chosen).sort().values
