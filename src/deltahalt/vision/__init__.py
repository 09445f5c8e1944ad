"""ViT-stage policies: fewer visual tokens of an image, from inside its vision tower."""

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
    """What `__all__` names, and any other policy of the ViT by its class, imported when it is first used."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{HOMES.get(name, 'policies')}"), name)
