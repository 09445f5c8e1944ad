"""Merging by bipartite matching, shared by ToMe and ToFu: which groups merge, and how many at each block."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.vision.policy import GroupView, VisionPolicy


@dataclass(frozen=True)
class Matching:
    """How r of n groups merge: group sources[i] merges into group targets[i], both [r]; `kept` [n - r] is ascending."""

    sources: torch.Tensor
    targets: torch.Tensor
    kept: torch.Tensor


def match(metric: torch.Tensor, merges: int) -> Matching:
    """Match each even group to the most similar odd group, and merge the `merges` closest pairs (ToMe, Sec. 3).

    metric: [n, c], compared by cosine. merges: at most n / 2, rounded up. The method needs the similarities of all
    pairs, an [n / 2, n / 2] tensor, where n is the number of groups in one frame.
    """
    metric = F.normalize(metric, dim=-1)
    likeness, nearest = (metric[::2] @ metric[1::2].T).max(dim=1)
    closest = likeness.argsort(descending=True, stable=True)[:merges]
    sources = 2 * closest
    kept = torch.ones(len(metric), dtype=torch.bool, device=metric.device).index_fill(0, sources, 0)
    return Matching(sources, 2 * nearest[closest] + 1, kept.nonzero().squeeze(1))


@dataclass(frozen=True, kw_only=True)
class GroupMerging(VisionPolicy):
    """A policy that merges groups between the attention and the MLP of each block from `start` on, down to `retain`.

    It works frame by frame, so `retain` is a share of each frame. Two groups merge patch by patch: each patch merges
    with the patch at the same place in the other group. Similarity is the cosine of keys before rotary embedding,
    averaged over heads and patches. A merged group has the coordinates of the group that the others merged into.

    Args:
        step: Share of its groups that a frame keeps at each block until it has reached `retain`, in [0.5, 1).

    Raises:
        PolicyError: For an option out of range.
    """

    unit: ClassVar[Literal["image", "frame"]] = "frame"
    cut: ClassVar[Literal["attention", "block", "features"]] = "attention"

    step: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.step < 1:
            raise PolicyError(
                f"step is {self.step!r}; it must lie in [0.5, 1): a block merges half of the groups at most"
            )

    def blocks(self, depth: int) -> range:
        first = self._first(depth)
        if self.step ** (depth - first) > self.retain:
            raise PolicyError(
                f"{self.name} with step={self.step} cannot reduce to retain={self.retain} in blocks {first} to "
                f"{depth - 1}: start earlier, or lower step"
            )
        return range(first, depth)

    def count(self, total: int, active: int) -> int:
        return min(active, max(self.kept(total), math.floor(self.step * active)))

    def schedule(self, total: int) -> list[int]:
        """Return the number of groups, out of `total`, after each block that merges."""
        counts = [total]
        while counts[-1] > self.kept(total):
            counts.append(self.count(total, counts[-1]))
        return counts[1:]

    def matching(self, view: GroupView, count: int) -> Matching:
        """Return the matching that reduces the frame to `count` groups."""
        return match(view.per_group(view.raw_keys().float().mean(dim=0)), len(view.places) - count)
