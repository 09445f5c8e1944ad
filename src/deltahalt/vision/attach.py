"""`halting_vision(model, policy)`: the seam between deltahalt and the ViT of a vision-language model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from deltahalt.errors import PolicyError, UnsupportedError
from deltahalt.host.blocks import Block, is_halting
from deltahalt.host.families.base import Module
from deltahalt.vision.engine import HaltedTower
from deltahalt.vision.policies import parse_vision_policy
from deltahalt.vision.policy import VisionPolicy
from deltahalt.vision.towers import tower_of


@contextmanager
def halting_vision(model: nn.Module, policy: VisionPolicy | str) -> Iterator[HaltedTower]:
    """Reduce the visual tokens of every image that `model` encodes inside the `with` block.

    The tower's features [G, D] keep their shape, and the features of dropped groups are NaN. Only a decoder under
    `deltahalt.halting` accepts these, so `halting(model, policy, vision=...)` is the usual call.

    Args:
        model: A Hugging Face vision-language model with a known tower, the whole model.
        policy: A VisionPolicy, or its text (see `parse_vision_policy`).

    Yields:
        The HaltedTower, whose `report` describes the latest pack of images. On any exit the model is as before.

    Raises:
        UnsupportedError: If groups cannot be halted in the model's tower, or another block halts in it already.
        PolicyError: If `policy` is not a ViT-stage policy, or does not fit the tower's depth.

    Example:
        >>> with halting_vision(model, "vision-dash:retain=0.5") as tower:  # doctest: +SKIP
        ...     features = model.model.get_image_features(pixel_values, image_grid_thw)  # 256 groups
        >>> [len(kept) for kept in tower.report.kept]  # doctest: +SKIP
        [128]
    """
    halted = halted_tower(model, policy)
    with Block(halted.places, marks=_base_of(model)).opened():
        yield halted


def halted_tower(model: nn.Module, policy: VisionPolicy | str) -> HaltedTower:
    """Return the ViT of `model` under `policy`, not attached yet. Raises as `halting_vision`."""
    chosen = parse_vision_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(chosen, VisionPolicy):
        raise PolicyError(f"{type(chosen).__name__} does not act in the ViT: give a VisionPolicy such as VisionDash()")
    tower = find_tower(model)
    return HaltedTower(tower, tower_of(model.config), chosen)


def _base_of(model: Module) -> Module:
    return getattr(model, "model", model)


def find_tower(model: Module) -> Module:
    """Return the ViT of a host's model. Raises UnsupportedError if groups cannot be halted in it."""
    home = tower_of(getattr(model, "config", None)).home
    tower = getattr(_base_of(model), home, None)
    if tower is None:
        raise UnsupportedError(f"{type(model).__name__} has no ViT at `model.{home}`: give the whole model, not a part")
    if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in (model, tower)):
        raise UnsupportedError("this model or its ViT is compiled as a whole: compile its blocks instead")
    if is_halting(tower):
        raise UnsupportedError("this ViT is halting already: leave the other `with halting_vision(...)` block first")
    return tower
