"""Which layers of one call share an attention mask, and the attention backend for each run of them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.engine.backends import backend
from deltahalt.engine.cache import Segment, segment_of
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.keys import Keys
from deltahalt.engine.layout import Layout
from deltahalt.engine.mask import attention_mask
from deltahalt.engine.piece_masks import PieceMasks
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.errors import UnsupportedError
from deltahalt.policies.base import Stage

Attention = tuple[torch.Tensor | None, AbstractContextManager[object]]  # the mask, and where it is to be used
Run = tuple[int, int, int | None]  # what layers share that read the same keys: first layers of both runs, and window


class Masks:
    """The attention masks of one call: one for each run of layers that hold the same tokens and have the same window.

    past: what the cache held before the call, by run of layers.
    """

    def __init__(self, host: HostDecoder, layout: Layout, past: list[Segment], cache: DynamicCache | None) -> None:
        self.host, self.layout, self.past, self.cache = host, layout, past, cache
        self._made: dict[tuple[Run, int], Attention] = {}  # by run, and number of queries
        self._in_pieces: dict[Run, PieceMasks] = {}

    def of(self, layer: int, stream: TokenStream, trace: Trace, layers_per_plan: int | None) -> Attention:
        """The mask of a layer about to run on `stream`, and the context to run its attention in.

        layers_per_plan: the number of layers, itself included, that share its tokens and window; None where all layers
        run on the same tokens.
        """
        run = self._run(layer, trace), stream.width
        if run not in self._made:
            keys = self._keys(layer, stream, trace)
            mask = attention_mask(
                stream.slots,
                keys.slots,
                padded=keys.padded,
                window=keys.window,
                attention=self.host.attention,
                dtype=stream.hidden.dtype,
                block_of=None if self.layout.blocks is None else self._block_of,
            )
            around: AbstractContextManager[object] = nullcontext()
            if layers_per_plan is not None:
                pairs = layers_per_plan * self.host.shape.heads * stream.slots.numel() * keys.slots.shape[1]
                around = backend(pairs, masked=mask is not None)
            self._made[run] = mask, around
        return self._made[run]

    def in_pieces(self, layer: int, stream: TokenStream, trace: Trace) -> PieceMasks:
        """The masks of a layer about to run on `stream` in pieces."""
        run = self._run(layer, trace)
        if run not in self._in_pieces:
            keys, dtype = self._keys(layer, stream, trace), stream.hidden.dtype
            self._in_pieces[run] = PieceMasks(keys, stream.width, attention=self.host.attention, dtype=dtype)
        return self._in_pieces[run]

    def layers_per_plan(self, stages: Iterable[Stage], exit_layer: int | None) -> list[int | None]:
        """For each layer, the number of layers (itself included) that share its tokens and window.

        None for every layer if all layers run on the same tokens. cuDNN compiles one plan for layers that share both.
        exit_layer: as in DecoderCall.
        """
        layers = len(self.host.windows)
        borders = {0, layers, *(stage.last + 1 for stage in stages), *(segment.start for segment in self.past)}
        if exit_layer is not None:
            borders.add(exit_layer)
        runs = [self.host.windows[begin:end] for begin, end in pairwise(sorted(borders))]
        if len(runs) == 1:
            return [None] * layers
        return [windows.count(window) for windows in runs for window in windows]

    def refuse_flash_window(self, halted_from: int) -> None:
        """Raise UnsupportedError if a layer from `halted_from` on has a window that FlashAttention would misplace."""
        columns = self.layout.seen + self.layout.width
        reached = any(window and window <= columns for window in self.host.windows[halted_from:])
        if reached and self.host.attention.startswith("flash"):
            raise UnsupportedError(
                "FlashAttention measures a sliding window over the kept tokens, not over the prompt: load the model "
                'with attn_implementation="sdpa" to halt prompts longer than its window'
            )

    def _run(self, layer: int, trace: Trace) -> Run:
        return segment_of(self.past, layer).start, segment_of(trace.segments, layer).start, self.window(layer)

    def window(self, layer: int) -> int | None:
        """The layer's window; None where all tokens so far fit into it."""
        window, layout = self.host.windows[layer], self.layout
        return None if window is not None and layout.seen + layout.width < window else window

    def _keys(self, layer: int, stream: TokenStream, trace: Trace) -> Keys:
        """What the tokens of `stream` read in the layer."""
        before = segment_of(self.past, layer)
        past = before.slots[:, -self._stored(layer) :] if self.layout.seen else before.slots
        parts = (*(readable.halted for readable in trace.readable), stream)
        return Keys(
            slots=torch.cat([past, *(part.slots for part in parts)], dim=1),
            padded=any(part.padded for part in parts) or before.padded,
            window=self.window(layer),
            in_order=not trace.resumed and all(readable.in_order for readable in trace.readable),
        )

    def _block_of(self, slots: torch.Tensor) -> torch.Tensor:
        """The block of the tokens at `slots` [B, n]; -1 for none, and for tokens of earlier calls."""
        assert self.layout.blocks is not None
        columns = slots - self.layout.seen
        blocks = self.layout.blocks.to(slots.device)
        return blocks.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)

    def _stored(self, layer: int) -> int:
        """Number of entries in the layer's cache. A sliding-window layer drops entries outside of its window."""
        cache: Any = self.cache
        stored: int = cache.layers[layer].keys.shape[-2]
        return stored
