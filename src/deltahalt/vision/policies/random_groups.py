"""Random selection: the floor that every signal has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class RandomGroups(GroupHalting):
    """Keep groups drawn at random: the same ones in every image of a size, whatever the device or pack."""

    name: ClassVar[str] = "random-groups"
    summary: ClassVar[str] = "a seeded random draw stays active"
    source: ClassVar[str] = "baseline"

    seed: int = 0

    def score(self, view: GroupView) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        draw = torch.rand(len(view.places), generator=generator, device="cpu").to(view.places.device)
        return draw[view.raster.argsort()]
