"""Merging by bipartite matching, which ToMe and ToFu share: who merges into whom, and how many at each block."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.vision.policy import GroupView, VisionPolicy


@dataclass(frozen=True)
class Matching:
    """The r of n groups that merge, `sources` [r]; into which ones, `targets` [r]; and `kept` [n - r], ascending."""

    sources: torch.Tensor
    targets: torch.Tensor
    kept: torch.Tensor


def match(metric: torch.Tensor, merges: int) -> Matching:
    """Match every other group to the most similar of those between, and merge the `merges` closest (ToMe, Sec. 3).

    metric: [n, c]. merges: n / 2 at most, rounded up. The similarities are an [n / 2, n / 2] tensor of groups, which is
    in the nature of the method; n is one frame's.
    """
    metric = F.normalize(metric, dim=-1)
    likeness, nearest = (metric[::2] @ metric[1::2].T).max(dim=1)
    closest = likeness.argsort(descending=True, stable=True)[:merges]
    sources = 2 * closest
    kept = torch.ones(len(metric), dtype=torch.bool, device=metric.device).index_fill(0, sources, 0)
    return Matching(sources, 2 * nearest[closest] + 1, kept.nonzero().squeeze(1))


@dataclass(frozen=True, kw_only=True)
class GroupMerging(VisionPolicy):
    """A method that merges groups between attention and MLP of several blocks, from `start` on, until `retain` is met.

    It works frame by frame, so `retain` is a share of each frame. Two groups merge patch by patch, each with the one in
    its own corner. The similarity of groups is that of their raw keys, averaged over heads and patches. What others
    merged into keeps its coordinates.

    step: share of its groups that a frame keeps at each block, as long as it has too many, in [0.5, 1).
    """

    unit: ClassVar[Literal["image", "frame"]] = "frame"
    cut: ClassVar[Literal["attention", "block", "features"]] = "attention"

    step: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.step < 1:
            raise PolicyError(f"step is {self.step!r}; it must lie in [0.5, 1): a block can merge half of all groups")

    def blocks(self, depth: int) -> range:
        first = self._first(depth)
        if self.step ** (depth - first) > self.retain:
            raise PolicyError(
                f"{self.name} cannot come down to retain={self.retain} in blocks {first} to {depth - 1}: "
                "start earlier, or lower step"
            )
        return range(first, depth)

    def count(self, total: int, active: int) -> int:
        return min(active, max(self.kept(total), math.floor(self.step * active)))

    def schedule(self, total: int) -> list[int]:
        """Groups that are left of `total` after each block that merges."""
        counts = [total]
        while counts[-1] > self.kept(total):
            counts.append(self.count(total, counts[-1]))
        return counts[1:]

    def matching(self, view: GroupView, count: int) -> Matching:
        """What merges into what so that `count` groups of the frame are left."""
        return match(view.per_group(view.raw_keys().float().mean(dim=0)), len(view.places) - count)
