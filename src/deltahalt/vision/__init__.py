"""ViT-stage policies, which reduce the visual tokens of an image inside the vision tower (ViT)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

HOMES = {"HaltedTower": "engine", "VisionPolicy": "policy", "VisionReport": "report", "halting_vision": "attach"}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`, or the class of any other ViT-stage policy, when it is first used."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{HOMES.get(name, 'policies')}"), name)
