"""ToFu: prune similar groups while the ViT is shallow, merge them later."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.vision.merging import GroupMerging
from deltahalt.vision.policy import GroupView, Reduced


@dataclass(frozen=True, kw_only=True)
class ToFu(GroupMerging):
    """Drop what ToMe would merge in the first half of the blocks that reduce; merge in the second, keeping the norm.

    A merged patch is the mean of those that meet in it, as long as the longest of them (MLERP).
    """

    name: ClassVar[str] = "tofu"
    summary: ClassVar[str] = "similar groups are pruned first, then merged with their norm kept"
    source: ClassVar[str] = "Token Fusion (arXiv 2312.01026), reduced proportionally as in DASH, App. B.2"

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        matching, schedule = self.matching(view, count), self.schedule(view.total)
        pruning = schedule.index(count) < len(schedule) // 2
        merged = states if pruning else fuse(states, matching.sources, matching.targets)
        return Reduced(matching.kept, merged[matching.kept])


def fuse(states: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """States [n, u, D] with those at `sources` merged into those at `targets`, patch by patch (MLERP)."""
    exact = states.float()
    sums = exact.index_add(0, targets, exact[sources])
    norms = exact.norm(dim=-1)  # [n, u]
    longest = norms.scatter_reduce(0, targets[:, None].expand(-1, norms.shape[1]), norms[sources], "amax")
    fused = sums * (longest / sums.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny))[..., None]
    return states.index_copy(0, targets, fused[targets].to(states.dtype))
