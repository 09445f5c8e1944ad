"""ToFu (Token Fusion), which prunes similar groups in earlier blocks and merges them in later ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.vision.merging import GroupMerging
from deltahalt.vision.policy import GroupView, Reduced


@dataclass(frozen=True, kw_only=True)
class ToFu(GroupMerging):
    """Drop the groups that ToMe would merge in the first half of the reducing blocks; merge in the second half.

    A merged patch has the direction of the mean of its patches and the largest of their norms (MLERP).

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> ToFu(retain=0.5, step=0.8).schedule(256)
        [204, 163, 130, 128]
    """

    name: ClassVar[str] = "tofu"
    summary: ClassVar[str] = "similar groups are pruned in earlier blocks and merged, with norms kept, in later ones"
    source: ClassVar[str] = "Token Fusion (arXiv 2312.01026), reduced proportionally as in DASH, App. B.2"

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        matching, schedule = self.matching(view, count), self.schedule(view.total)
        pruning = schedule.index(count) < len(schedule) // 2
        merged = states if pruning else fuse(states, matching.sources, matching.targets)
        return Reduced(matching.kept, merged[matching.kept])


def fuse(states: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return states [n, u, D] after the groups at `sources` merged into those at `targets`, patch by patch (MLERP)."""
    exact = states.float()
    sums = exact.index_add(0, targets, exact[sources])
    norms = exact.norm(dim=-1)  # [n, u]
    longest = norms.scatter_reduce(0, targets[:, None].expand(-1, norms.shape[1]), norms[sources], "amax")
    fused = sums * (longest / sums.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny))[..., None]
    return states.index_copy(0, targets, fused[targets].to(states.dtype))
