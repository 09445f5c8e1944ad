"""Putting something in the place of a host's own part, and taking it out again."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def replace(target: nn.Module, name: str, value: Callable[..., Any], undo: ExitStack) -> None:
    """Set an attribute of the instance until `undo` unwinds."""
    if name in target.__dict__:
        undo.callback(setattr, target, name, target.__dict__[name])
    else:
        undo.callback(delattr, target, name)
    setattr(target, name, value)


def shell_of(module: nn.Module, **parts: nn.Module) -> Any:
    """A shallow copy of `module` with other children: the module itself stays as it is for everybody else."""
    shell = copy.copy(module)
    shell.__dict__["_modules"] = {**module._modules, **parts}
    return shell


def within_hook(module: nn.Module, forward: Callable[..., Any]) -> Any:
    """A shallow copy of `module` that runs `forward` in place of its own.

    Hooks on the module fire, and its accelerate hook, if there is one, brings weights and inputs together.
    """
    shell: Any = copy.copy(module)
    hook: Any = getattr(module, "_hf_hook", None)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        return hook.post_forward(module, forward(*args, **kwargs))

    shell.forward = forward if hook is None else hooked
    return shell
