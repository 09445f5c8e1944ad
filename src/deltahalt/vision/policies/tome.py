"""ToMe (Token Merging), which replaces similar groups by their mean."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.vision.merging import GroupMerging
from deltahalt.vision.policy import GroupView, Reduced


@dataclass(frozen=True, kw_only=True)
class ToMe(GroupMerging):
    """Merge similar groups into their mean, weighted by size, and weight keys by size in attention.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> ToMe(retain=0.5, step=0.7).schedule(256)
        [179, 128]
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "similar groups merge into their average, block by block"
    source: ClassVar[str] = "Token Merging (arXiv 2210.09461), reduced proportionally as in DASH, App. B.2"

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        matching = self.matching(view, count)
        sizes = view.sizes.index_add(0, matching.targets, view.sizes[matching.sources])
        weighted = states.float() * view.sizes[:, None, None]
        total = weighted.index_add(0, matching.targets, weighted[matching.sources])
        merged = (total / sizes[:, None, None]).to(states.dtype)
        return Reduced(matching.kept, merged[matching.kept], sizes[matching.kept])
