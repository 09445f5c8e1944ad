"""Every layer of the full model, shown as a policy would see it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.host.families.base import Module
from deltahalt.policies.base import Policy, Stage
from deltahalt.policies.dense import Dense
from deltahalt.policies.layer_view import LayerView


@contextmanager
def observing(model: Module, look: Callable[[LayerView], None]) -> Iterator[Halted]:
    """Show each layer of every prefill of `model` to `look`, one sequence at a time, and halt nothing.

    Raises what `halting` raises.
    """
    with halting(model, Dense()) as halted:
        layers = halted.host.shape.layers
        halted.stages = (Stage((_Observer(look=look),), first=0, last=layers),)  # it would decide past the last layer
        yield halted


@dataclass(frozen=True, kw_only=True)
class _Observer(Policy):
    """A policy that looks and never comes to decide."""

    look: Callable[[LayerView], None]

    def score(self, view: LayerView) -> torch.Tensor:
        self.look(view)
        return torch.zeros(len(view.positions), device=view.positions.device)

    def kept(self, prompt: int, kinds: torch.Tensor | None = None) -> int:
        """Zero, so that every prompt is observed, however short."""
        return 0
