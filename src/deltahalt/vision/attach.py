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
    """Leave fewer visual tokens of every image that `model` sees inside the `with` block.

    model: a Hugging Face vision-language model with a known tower. policy: a VisionPolicy, or its text.

    The tower's features keep their shape, and those that are gone are NaN: only a decoder under `deltahalt.halting`
    can go on with them. Yields the HaltedTower, whose `report` tells what the latest images kept. On any exit the
    model is as before. Raises UnsupportedError for another model, PolicyError for a policy that does not fit it.
    """
    halted = halted_tower(model, policy)
    with Block(halted.places, marks=_base_of(model)).opened():
        yield halted


def halted_tower(model: nn.Module, policy: VisionPolicy | str) -> HaltedTower:
    """The ViT of `model` under `policy`, not attached yet. Raises as `halting_vision`."""
    chosen = parse_vision_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(chosen, VisionPolicy):
        raise PolicyError(f"{type(chosen).__name__} does not act in the ViT: give a policy such as VisionDash()")
    tower = find_tower(model)
    return HaltedTower(tower, tower_of(model.config), chosen)


def _base_of(model: Module) -> Module:
    return getattr(model, "model", model)


def find_tower(model: Module) -> Module:
    """The ViT of a host's model. Raises UnsupportedError where groups cannot be halted in it."""
    home = tower_of(getattr(model, "config", None)).home
    tower = getattr(_base_of(model), home, None)
    if tower is None:
        raise UnsupportedError(f"{type(model).__name__} has no ViT at `model.{home}`: give the whole model")
    if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in (model, tower)):
        raise UnsupportedError("this model or its ViT is compiled as a whole: compile its blocks in place of it")
    if is_halting(tower):
        raise UnsupportedError("this ViT is halting already: leave the other `with halting_vision(...)` block first")
    return tower
