"""A layer of the host, about to run on the tokens of a stream."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from deltahalt.engine.call import DecoderCall
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.host.compat import layer_output
from deltahalt.host.families.base import Module


@dataclass(frozen=True)
class HostLayer:
    """Layer number `index` of the host, about to run on all tokens of `stream` at once.

    inputs: its keyword arguments. around: the context to run it in.
    """

    index: int
    layer: Module
    stream: TokenStream
    call: DecoderCall
    inputs: dict[str, Any]
    around: AbstractContextManager[object]

    @classmethod
    def on(
        cls, stream: TokenStream, index: int, layer: Module, call: DecoderCall, trace: Trace, per_plan: int | None
    ) -> "HostLayer":
        """The layer on this stream. per_plan: `layers_per_plan` of `Masks.of`."""
        mask, around = call.masks.of(index, stream, trace, per_plan)
        return cls(index, layer, stream, call, call.layer_inputs(index, stream, mask), around)

    def run(self) -> torch.Tensor:
        """Hidden states [B, n, D] after the layer."""
        return layer_output(self.layer(self.stream.hidden, **self.inputs))

    def attention(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The output of the attention on `hidden` [B, n, D], the states as they enter the layer."""
        return self.call.host.family.attention(self.layer, hidden, **inputs)

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states after the FFN, from those between attention and FFN: [B, n, D]."""
        return self.call.host.family.feed_forward(self.layer, hidden)
