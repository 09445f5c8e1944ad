"""DASH in the ViT, which halts the groups that attention updates least."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.norms import norms
from deltahalt.vision.policy import GroupHalting, GroupView


@dataclass(frozen=True, kw_only=True)
class VisionDash(GroupHalting):
    """Keep the groups with the largest attention-branch delta ||U||_2, averaged over their patches (DASH, Eq. 2-3).

    The paper does not state at which block its ViT stage decides; the default start is ours.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> VisionDash(retain=0.35, start=0.5).blocks(32)
        range(16, 17)
    """

    name: ClassVar[str] = "vision-dash"
    summary: ClassVar[str] = "groups with the largest attention update stay active"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), ViT stage of Tables 6 and 7"

    start: float | int = 0.25

    def score(self, view: GroupView) -> torch.Tensor:
        delta = norms(view.update)
        return delta.mean(dim=1)
