"""Policies of the ViT that several tests use."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from deltahalt.vision import VISION_POLICIES, ToFu, ToMe
from deltahalt.vision.policy import GroupHalting, GroupView, VisionPolicy
from helpers.vit_naive import tofu_naively, tome_naively

HALTING = [policy for policy in VISION_POLICIES.values() if policy.cut == "block"]


@dataclass(frozen=True, kw_only=True)
class LastGroups(GroupHalting):
    """Keeps the last groups in raster order: whole windows and frames lose all of theirs."""

    name: ClassVar[str] = "last-groups"

    def score(self, view: GroupView) -> torch.Tensor:
        return view.places.float()


def keeping(policy: Any, retain: float, **options: Any) -> VisionPolicy:
    """The policy, which merges fast if it merges, since the tower has six blocks."""
    return policy(retain=retain, **({"step": 0.5} if hasattr(policy, "step") else {}), **options)


each_merging = pytest.mark.parametrize(
    ("policy", "fuse", "prunes"),
    [
        (ToMe(retain=0.3, start=1, step=0.7), tome_naively, set()),
        (ToFu(retain=0.3, start=1, step=0.7), tofu_naively, {1}),
    ],
    ids=["tome", "tofu"],
)
