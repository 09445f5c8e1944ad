"""One generated token through all layers, over K/V that lie in tensors with room for more tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.engine.cache import Segment
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.stream import TokenStream
from deltahalt.host.compat import fill_cache_layer, layer_output
from deltahalt.host.families.base import Rotary
from deltahalt.host.one_query import PART, OneQuery


@dataclass(frozen=True)
class Run:
    """Layers that hold K/V of the same tokens: `held` of them as the step was made.

    padded: whether any is padding. real: [B, room], or [1, room] without padding: whether an entry is a token; those
    after the `held` ones all are.
    """

    layers: range
    held: int
    padded: bool
    real: torch.Tensor

    @classmethod
    def of(cls, segment: Segment, end: int, room: int, device: torch.device) -> "Run":
        """The layers from the segment's first to `end`, with room for at least `room` more tokens."""
        slots = segment.slots.to(device) if segment.padded else segment.slots[:1].to(device)
        rows, held = slots.shape
        whole = -(-(held + room) // PART) * PART
        real = torch.ones(rows, whole, dtype=torch.bool, device=device)
        if segment.padded:
            real[:, :held] = slots >= 0
        return cls(range(segment.start, end), held, segment.padded, real)


class DecodeStep:
    """What a decoder computes for one token of each row, with every tensor at one place, so that a graph can hold it.

    It stands in for the host's cache and writes K/V of the token after those that are there. The cache gets views of
    what is filled. Entries that the cache has shown are never written again, since others may share them.
    """

    def __init__(
        self, host: HostDecoder, cache: DynamicCache, segments: Sequence[Segment], stream: TokenStream, room: int
    ) -> None:
        device = stream.hidden.device
        self.host, self.layers = host, host.layers
        ends = [*(segment.start for segment in segments[1:]), len(self.layers)]
        self.runs = [Run.of(segment, end, room, device) for segment, end in zip(segments, ends, strict=True)]
        self.hidden = torch.empty_like(stream.hidden)  # [B, 1, D]
        self.rotary: dict[str, Rotary] = {
            kind: (torch.empty_like(cos), torch.empty_like(sin)) for kind, (cos, sin) in stream.rotary.items()
        }
        self.added = torch.zeros(1, dtype=torch.long, device=device)  # tokens written by earlier steps
        self.room = min(run.real.shape[1] - run.held for run in self.runs)
        self.filled = 0  # the same as `added`, known without a wait for the device
        self.place = self.added  # of the token among a layer's entries, while that layer runs
        self.kv: list[tuple[torch.Tensor, torch.Tensor]] = []  # by layer, [B, kv_heads, room, d]
        for run in self.runs:
            for index in run.layers:
                layer: Any = cache.layers[index]
                self.kv.append((_roomy(layer.keys, run), _roomy(layer.values, run)))
                self._show(layer, index, run)  # at once: the shorter tensors are free before the next layer's are made
        self.shown = _held_by(cache)

    @property
    def full(self) -> bool:
        """Whether the room for new tokens is used up."""
        return self.filled == self.room

    def goes_on(self, cache: DynamicCache, segments: Sequence[Segment], stream: TokenStream) -> bool:
        """Whether the next token is one of `stream`, on a cache that holds what this step has left in it."""
        return (
            len(cache.layers) == len(self.kv)
            and all(one is other for one, other in zip(_held_by(cache), self.shown, strict=True))
            and _same_kind(self.hidden, stream.hidden)
            and self.rotary.keys() == stream.rotary.keys()
            and all(
                _same_kind(ours, theirs)
                for kind, pair in self.rotary.items()
                for ours, theirs in zip(pair, stream.rotary[kind], strict=True)
            )
            and len(segments) == len(self.runs)
            and all(self._masks(run, segment) for run, segment in zip(self.runs, segments, strict=True))
        )

    def take(self, hidden: torch.Tensor, rotary: Mapping[str, Rotary]) -> None:
        """Take the states [B, 1, D] of the next token, and its cos and sin."""
        self.hidden.copy_(hidden)
        for kind, pair in rotary.items():
            for ours, theirs in zip(self.rotary[kind], pair, strict=True):
                ours.copy_(theirs)
        self.added.fill_(self.filled)

    def compute(self) -> torch.Tensor:
        """The states [B, 1, D] of the token as they leave the last layer; its K/V are then written."""
        hidden = self.hidden
        for run in self.runs:
            self.place = self.added + run.held
            entries = torch.arange(run.real.shape[1], device=hidden.device)
            with OneQuery(run.real & (entries <= self.place)):
                for index in run.layers:
                    inputs = self.host.layer_inputs(index, self.rotary, None, self, use_cache=True)
                    hidden = layer_output(self.layers[index](hidden, **inputs))
        return hidden

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write K and V [B, kv_heads, 1, d] of the token; returns all entries, [B, kv_heads, room, d]."""
        held = self.kv[layer_idx]
        for whole, new in zip(held, (keys, values), strict=True):
            whole.index_copy_(2, self.place, new)
        return held

    def show(self, cache: DynamicCache) -> None:
        """Let the cache hold the token, too, as views of what is filled."""
        self.filled += 1
        for run in self.runs:
            for index in run.layers:
                self._show(cache.layers[index], index, run)
        self.shown = _held_by(cache)

    def _show(self, layer: Any, index: int, run: Run) -> None:
        keys, values = (part[..., : run.held + self.filled, :] for part in self.kv[index])
        fill_cache_layer(layer, keys, values, 1)

    def _masks(self, run: Run, segment: Segment) -> bool:
        """Whether the entries of `segment` are those of the run, and padding is where it was."""
        filled = run.held + self.filled
        theirs = (segment.start, segment.slots.shape[1], segment.padded)
        if theirs != (run.layers.start, filled, run.padded):
            return False
        real = run.real[:, :filled]
        return not run.padded or torch.equal(real, (segment.slots >= 0).to(real.device))


def _held_by(cache: DynamicCache) -> list[torch.Tensor]:
    """Keys and values of all layers."""
    layers: list[Any] = cache.layers
    return [part for layer in layers for part in (layer.keys, layer.values)]


def _roomy(held: torch.Tensor, run: Run) -> torch.Tensor:
    """A tensor [B, kv_heads, room, d] that begins with `held` [B, kv_heads, m, d]; zeros follow."""
    room = run.real.shape[1]
    whole = held.new_empty(*held.shape[:-2], room, held.shape[-1])
    whole[..., : run.held, :] = held
    whole[..., run.held :, :] = 0
    return whole


def _same_kind(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
