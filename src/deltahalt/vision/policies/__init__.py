"""The ViT-stage methods, one a file, and how to name them in text: `tome`, `vision-dash:start=0.5,retain=0.35`."""

from typing import Any

from deltahalt.policies.text import read_method
from deltahalt.vision.policies.dart_vit import DartViT
from deltahalt.vision.policies.prumerge_plus import PruMergePlus
from deltahalt.vision.policies.random_groups import RandomGroups
from deltahalt.vision.policies.tofu import ToFu
from deltahalt.vision.policies.tome import ToMe
from deltahalt.vision.policies.uniform_groups import UniformGroups
from deltahalt.vision.policies.vision_dash import VisionDash
from deltahalt.vision.policies.visionzip import VisionZip
from deltahalt.vision.policy import VisionPolicy

VISION_POLICIES: dict[str, type[VisionPolicy]] = {
    policy.name: policy
    for policy in (VisionDash, DartViT, ToMe, ToFu, VisionZip, PruMergePlus, RandomGroups, UniformGroups)
}

__all__ = [
    "VISION_POLICIES",
    "DartViT",
    "PruMergePlus",
    "RandomGroups",
    "ToFu",
    "ToMe",
    "UniformGroups",
    "VisionDash",
    "VisionZip",
    "parse_vision_policy",
]


def parse_vision_policy(text: str, **overrides: Any) -> VisionPolicy:
    """Build a ViT-stage policy from its name and options, `name:option=value,...`.

    overrides: options already typed. Raises PolicyError for an unknown name or option.
    """
    return read_method(text, VISION_POLICIES, overrides)
