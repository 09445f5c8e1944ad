"""The modules and weights of layers, as a recording of them depends on them."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from deltahalt.host.families.base import Module

PLAIN = ("torch.nn.", "transformers.")  # packages whose modules do at every call what they did at the first


class Wiring:
    """The modules of some layers and the addresses of their weights, as they are now."""

    def __init__(self, layers: Iterable[Module]) -> None:
        self.modules: list[Module] = [module for layer in layers for module in layer.modules()]
        self.parts, self.addresses = self._parts(), self._addresses()
        self.held = [weight.detach() for weight in self._weights()]  # a recording may run once after they are replaced

    @property
    def stale(self) -> bool:
        """Whether a recording would now differ: by a module, the place of a weight, or a hook."""
        return self._parts() != self.parts or self._addresses() != self.addresses or self._hooked()

    def obstacle(self, device: torch.device) -> str | None:
        """Why these layers cannot be recorded on the device, and what to do about it; None if they can."""
        other = next((module for module in self.modules if not type(module).__module__.startswith(PLAIN)), None)
        if other is not None:
            return f"{type(other).__name__} is neither of torch nor of transformers: merge it into the weights"
        if self._hooked():
            return "modules have hooks, are compiled, or have a forward of their own: undo this"
        if any(weight.device != device or not weight.is_floating_point() for weight in self._weights()):
            return "layers have quantized weights or weights on another device: load the model unquantized on one GPU"
        return None

    def _hooked(self) -> bool:
        """Whether code of others runs within the layers, which a recording would leave out."""
        return _has_any_global_hook() or any(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._compiled_call_impl is not None
            or "forward" in module.__dict__
            for module in self.modules
        )

    def _weights(self) -> Iterable[torch.Tensor]:
        weights = (chain(module._parameters.values(), module._buffers.values()) for module in self.modules)
        return (weight for weight in chain.from_iterable(weights) if weight is not None)

    def _addresses(self) -> list[int]:
        return [weight.data_ptr() for weight in self._weights()]

    def _parts(self) -> list[Any]:
        return [part for module in self.modules for part in module._modules.values()]
