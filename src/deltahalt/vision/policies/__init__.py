"""The ViT-stage policies, one per file, and the parser of their text form: `tome`, `vision-dash:start=0.5,retain=0.35`.

A policy in a new file of this folder is found automatically, and its class can be imported from here.
"""

from typing import TYPE_CHECKING, Any

from deltahalt.errors import PolicyError
from deltahalt.policies.discovery import class_called, found
from deltahalt.policies.text import build, read, update
from deltahalt.vision.policy import VisionPolicy

if TYPE_CHECKING:
    from deltahalt.vision.policies.dart_vit import DartViT
    from deltahalt.vision.policies.prumerge_plus import PruMergePlus
    from deltahalt.vision.policies.random_groups import RandomGroups
    from deltahalt.vision.policies.tofu import ToFu
    from deltahalt.vision.policies.tome import ToMe
    from deltahalt.vision.policies.uniform_groups import UniformGroups
    from deltahalt.vision.policies.vision_dash import VisionDash
    from deltahalt.vision.policies.visionzip import VisionZip

    VISION_POLICIES: dict[str, type[VisionPolicy]]

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

    Args:
        text: The name of one policy and its options.
        overrides: Options, typed or as text, that replace those in the text.

    Returns:
        The policy, an instance of its class.

    Raises:
        PolicyError: For an unknown name or option, a value out of range, or several policies joined by `+`.

    Example:
        >>> parse_vision_policy("vision-dash:start=0.5", retain=0.35)
        VisionDash(retain=0.35, start=0.5)
    """
    stages = read(text)
    if len(stages) > 1:
        raise PolicyError(f"{text!r} names {len(stages)} policies, but a ViT takes only one: give one name without `+`")
    (stage,) = update(stages, overrides)
    return build(stage, known_vision_policies())


def known_vision_policies() -> dict[str, type[VisionPolicy]]:
    """Return all ViT-stage policies by name, including those of other packages."""
    return found(__name__, VisionPolicy)


def __getattr__(name: str) -> Any:
    """Return VISION_POLICIES, or a policy by the name of its class."""
    if name.startswith("_"):
        raise AttributeError(name)
    if name == "VISION_POLICIES":
        return known_vision_policies()
    return class_called(__name__, name)
