"""Uniform selection, which keeps evenly spaced groups."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.selection import evenly
from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class UniformGroups(GroupHalting):
    """Keep groups at even distances in raster order.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> UniformGroups(retain=0.25).kept(256)
        64
    """

    name: ClassVar[str] = "uniform-groups"
    summary: ClassVar[str] = "evenly spaced groups stay active"
    source: ClassVar[str] = "baseline"

    def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
        return view.raster[evenly(len(view.places), count).to(view.places.device)].sort().values
