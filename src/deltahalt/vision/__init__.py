"""ViT-stage methods: fewer visual tokens of an image, from inside its vision tower."""

from deltahalt.vision.attach import halting_vision
from deltahalt.vision.engine import HaltedTower
from deltahalt.vision.policies import (
    VISION_POLICIES,
    DartViT,
    PruMergePlus,
    RandomGroups,
    ToFu,
    ToMe,
    UniformGroups,
    VisionDash,
    VisionZip,
    parse_vision_policy,
)
from deltahalt.vision.policy import VisionPolicy
from deltahalt.vision.report import VisionReport

__all__ = [
    "VISION_POLICIES",
    "DartViT",
    "HaltedTower",
    "PruMergePlus",
    "RandomGroups",
    "ToFu",
    "ToMe",
    "UniformGroups",
    "VisionDash",
    "VisionPolicy",
    "VisionReport",
    "VisionZip",
    "halting_vision",
    "parse_vision_policy",
]
