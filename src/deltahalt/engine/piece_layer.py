"""A layer of the host that runs over pieces of a stream."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deltahalt.engine.backends import WITHOUT_CUDNN, backend
from deltahalt.engine.call import DecoderCall
from deltahalt.engine.host_layer import HostLayer
from deltahalt.engine.layer_kv import LayerKV
from deltahalt.engine.pieces import in_pieces, joined, pieces
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.host.compat import CACHE
from deltahalt.host.families.base import Module
from deltahalt.host.lower_right import LowerRight
from deltahalt.host.stand_in import within_hook


@dataclass(frozen=True)
class PieceLayer(HostLayer):
    """A layer about to run on `call.piece` tokens of `stream` at once, so that its inner tensors stay small.

    It runs in its two halves within the layer's hooks, which fire once. Those of its parts fire once a piece.
    """

    trace: Trace

    @classmethod
    def on(
        cls, stream: TokenStream, index: int, layer: Module, call: DecoderCall, trace: Trace, per_plan: int | None
    ) -> "PieceLayer":
        host, inputs = call.host, call.layer_inputs(index, stream, None)
        if host.windows[index] is not None:
            return cls(index, layer, stream, call, inputs, WITHOUT_CUDNN, trace)
        layers = host.shape.layers if per_plan is None else per_plan
        pairs = layers * host.shape.heads * len(stream.lengths) * stream.width**2 // 2
        plans = 1 + (stream.width // call.piece).bit_length()  # sizes of blocks, see `LowerRight`
        return cls(index, layer, stream, call, inputs, backend(pairs // plans, masked=False), trace)

    def run(self) -> torch.Tensor:
        return within_hook(self.layer, self._block)(self.stream.hidden, **self.inputs)

    def attention(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        return self._over(hidden, inputs, lambda _, update: update)

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return in_pieces(super().feed_forward, hidden, self.call.piece)

    def _block(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        family = self.call.host.family

        def after(states: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
            return family.feed_forward(self.layer, family.add_attention(self.layer, states, update))

        return self._over(hidden, inputs, after)

    def _over(
        self,
        hidden: torch.Tensor,
        inputs: dict[str, Any],
        finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """What `finish` makes of the states of each piece and the output of its attention, joined: [B, n, D]."""
        call, tokens = self.call, hidden.shape[1]
        masks = call.masks.in_pieces(self.index, self.stream, self.trace)
        held = LayerKV(call.cache, self.index, tokens, masks.window)

        def run(piece: slice) -> torch.Tensor:
            states, mask = hidden[:, piece], masks.of(piece)
            own = inputs | {
                "position_embeddings": tuple(part[..., piece, :] for part in inputs["position_embeddings"]),
                CACHE: held,
            }
            if isinstance(mask, LowerRight):
                with mask:
                    update = super(PieceLayer, self).attention(states, **own, is_causal=False)
            else:
                mask = None if mask is None else mask.to(hidden.device)
                update = super(PieceLayer, self).attention(states, **own | {"attention_mask": mask})
            return finish(states, update)

        result = joined((run(piece) for piece in pieces(tokens, call.piece)), tokens)
        held.hand_over()
        return result
