"""Temporary replacements for parts of a host's model."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def swap_in(target: nn.Module, name: str, value: Callable[..., Any], undo: ExitStack) -> None:
    """Set attribute `name` of the instance to `value` until `undo` is closed."""
    if name in target.__dict__:
        undo.callback(setattr, target, name, target.__dict__[name])
    else:
        undo.callback(delattr, target, name)
    setattr(target, name, value)


def shell_of(module: nn.Module, **parts: nn.Module) -> Any:
    """Return a shallow copy of `module` in which `parts` replace children of the same names. `module` is unchanged."""
    shell = copy.copy(module)
    shell.__dict__["_modules"] = {**module._modules, **parts}
    return shell


def within_hook(module: nn.Module, forward: Callable[..., Any]) -> Any:
    """Return a shallow copy of `module` that runs `forward` in place of its own forward.

    The module's hooks run. If it has an accelerate hook, that moves weights and inputs to one device.
    """
    shell: Any = copy.copy(module)
    hook: Any = getattr(module, "_hf_hook", None)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        return hook.post_forward(module, forward(*args, **kwargs))

    shell.forward = forward if hook is None else hooked
    return shell
