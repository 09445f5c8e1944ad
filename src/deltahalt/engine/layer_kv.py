"""K and V of one layer that runs in pieces, allocated once."""

from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.host.compat import fill_cache_layer


class LayerKV:
    """Stands in for the host's cache while a layer runs in pieces.

    The host's cache would copy all K and V for each piece. Here they are written into tensors of their final length,
    which the cache gets once the layer is done.

    cache: the host's; None for a call without one. tokens: the number of tokens in all pieces. window: how many
    tokens back a query sees, itself included; None for all.
    """

    def __init__(self, cache: DynamicCache | None, index: int, tokens: int, window: int | None) -> None:
        self.cache, self.index, self.tokens, self.window = cache, index, tokens, window
        self.filled = 0  # entries so far, those from before the call included
        self.keys: torch.Tensor | None = None  # [B, kv_heads, entries, d]
        self.values: torch.Tensor | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add K and V [B, kv_heads, m, d] of a piece; returns those that it reads, its own the last of them."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._allocated(keys, values)
        begin, self.filled = self.filled, self.filled + keys.shape[-2]
        self.keys[..., begin : self.filled, :] = keys
        self.values[..., begin : self.filled, :] = values
        first = 0 if self.window is None else max(0, begin - self.window + 1)
        return self.keys[..., first : self.filled, :], self.values[..., first : self.filled, :]

    def hand_over(self) -> None:
        """Give K and V of all pieces to the host's cache."""
        if self.cache is not None and self.keys is not None and self.values is not None:
            fill_cache_layer(self.cache.layers[self.index], self.keys, self.values, self.tokens)

    def _allocated(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors for K and V like these, of the final length; they begin with what the cache holds."""
        if self.cache is None:
            return _with_room(keys[..., :0, :], self.tokens), _with_room(values[..., :0, :], self.tokens)
        self.cache.update(keys[..., :0, :], values[..., :0, :], self.index)  # which sets up an empty layer
        held: Any = self.cache.layers[self.index]
        self.filled = held.keys.shape[-2]
        return _with_room(held.keys, self.tokens), _with_room(held.values, self.tokens)


def _with_room(held: torch.Tensor, tokens: int) -> torch.Tensor:
    """A tensor [B, kv_heads, m + tokens, d] that begins with `held` [B, kv_heads, m, d]."""
    whole = held.new_empty(*held.shape[:-2], held.shape[-2] + tokens, held.shape[-1])
    whole[..., : held.shape[-2], :] = held
    return whole
