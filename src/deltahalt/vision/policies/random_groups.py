"""Random selection, the baseline that every score has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.selection import drawn
from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class RandomGroups(GroupHalting):
    """Keep groups drawn at random.

    Args:
        seed: Seed of the draw. Images of one size keep the same groups, on every device and in every pack.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> RandomGroups(retain=0.5, seed=1).kept(256)
        128
    """

    name: ClassVar[str] = "random-groups"
    summary: ClassVar[str] = "groups drawn at random with a seed stay active"
    source: ClassVar[str] = "baseline"

    seed: int = 0

    def score(self, view: GroupView) -> torch.Tensor:
        return drawn(len(view.places), self.seed).to(view.places.device)[view.raster.argsort()]
