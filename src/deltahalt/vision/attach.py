"""`halting_vision(model, policy)`: the seam between deltahalt and the ViT of a vision-language model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from deltahalt.errors import PolicyError, UnsupportedError
from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import replace
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
    chosen = parse_vision_policy(policy) if isinstance(policy, str) else policy
    if not isinstance(chosen, VisionPolicy):
        raise PolicyError(f"{type(chosen).__name__} does not act in the ViT: give a policy such as VisionDash()")
    tower = find_tower(model)
    halted = HaltedTower(tower, tower_of(model.config), chosen)
    with ExitStack() as undo:
        # An accelerate hook has put a wrapper in `forward`, which calls `_old_forward`: keep the wrapper.
        replace(tower, "_old_forward" if hasattr(tower, "_hf_hook") else "forward", halted.forward, undo)
        yield halted


def find_tower(model: Module) -> Module:
    """The ViT of a host's model. Raises UnsupportedError where groups cannot be halted in it."""
    home = tower_of(getattr(model, "config", None)).home
    tower = getattr(getattr(model, "model", model), home, None)
    if tower is None:
        raise UnsupportedError(f"{type(model).__name__} has no ViT at `model.{home}`: give the whole model")
    if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in (model, tower)):
        raise UnsupportedError("this model or its ViT is compiled as a whole: compile its blocks in place of it")
    for name in ("forward", "_old_forward"):
        if isinstance(getattr(tower.__dict__.get(name), "__self__", None), HaltedTower):
            raise UnsupportedError(
                "this ViT is halting already: leave the other `with halting_vision(...)` block first"
            )
    return tower
