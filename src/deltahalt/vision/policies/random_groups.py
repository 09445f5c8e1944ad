"""Random selection: the floor that every signal has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.selection import drawn
from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class RandomGroups(GroupHalting):
    """Keep groups drawn at random.

    seed: draws the groups: the same ones in every image of a size, whatever the device or pack.
    """

    name: ClassVar[str] = "random-groups"
    summary: ClassVar[str] = "a seeded random draw stays active"
    source: ClassVar[str] = "baseline"

    seed: int = 0

    def score(self, view: GroupView) -> torch.Tensor:
        return drawn(len(view.places), self.seed).to(view.places.device)[view.raster.argsort()]
