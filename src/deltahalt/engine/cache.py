"""A K/V cache whose layers hold different tokens."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.engine.resting import Resting
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.compat import version_error


@dataclass
class Segment:
    """A run of layers, from `start` on, that hold K/V of the same tokens.

    slots: [B, k] the column of the input that each entry came from; -1 for padding. padded: whether any is.
    """

    start: int
    slots: torch.Tensor
    padded: bool


def segment_of(segments: list[Segment], layer: int) -> Segment:
    """The segment that the layer belongs to."""
    return next(segment for segment in reversed(segments) if segment.start <= layer)


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of all keys and values that the cache holds."""
    layers: list[Any] = cache.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def cache_entries(cache: DynamicCache) -> tuple[int, ...]:
    """For each layer, how many tokens it holds keys of."""
    layers: list[Any] = cache.layers
    return tuple(layer.keys.shape[-2] for layer in layers)


def holds_all(cache: DynamicCache, segments: list[Segment]) -> bool:
    """Whether each layer holds all tokens of its segment; after a KV press, layers hold fewer."""
    given = (segment_of(segments, index).slots.shape[1] for index in range(len(cache.layers)))
    return cache_entries(cache) == tuple(given)


def cache_rows(cache: DynamicCache) -> int:
    """Number of sequences that the cache holds."""
    layers: list[Any] = cache.layers
    rows: int = layers[0].keys.shape[0]
    return rows


def refuse_unfilled(cache: DynamicCache, layers: Iterable[int]) -> None:
    """Raise UnsupportedError if one of `layers`, by index, did not put keys into the cache."""
    held: list[Any] = cache.layers
    for index in layers:
        if index >= len(held) or held[index].keys is None:
            raise version_error(f"layer {index} put no keys into the cache")


@contextmanager
def untouched_on_error(cache: DynamicCache | None) -> Iterator[None]:
    """Put the layers of `cache` back as they were if the block raises."""
    layers = [] if cache is None else [copy.copy(layer) for layer in cache.layers]
    try:
        yield
    except BaseException:
        if cache is not None:
            cache.layers = layers
        raise


def fork(cache: DynamicCache) -> DynamicCache:
    """A copy of the cache that can grow without changing the original.

    Shares the tensors, which the host replaces and never writes to.
    """
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    if isinstance(twin, HaltedCache):
        twin.segments = [copy.copy(segment) for segment in twin.segments]
    return twin


class HaltedCache(DynamicCache):
    """A DynamicCache filled by a prefill that halted tokens.

    The layers are the host's own; this adds which tokens they hold, and keeps it right through beams and crops.
    Only `halting` can go on with it: the host sizes one mask for all layers, and is refused.
    """

    segments: list[Segment]
    seen: int  # columns of the input so far, halted tokens and padding included
    tail: int  # number of last columns that every layer holds
    generated: int  # columns since the latest call of several tokens
    resting: Resting | None  # halted tokens that may run on in a later turn

    @classmethod
    def adopt(cls, cache: DynamicCache, segments: list[Segment], seen: int) -> "HaltedCache":
        """Make `cache`, whose layers all hold the same `seen` columns, a HaltedCache in place.

        So whoever passed it to `generate` keeps the object and reads it later.
        """
        cache.__class__ = cls
        assert isinstance(cache, cls)
        cache.segments, cache.seen, cache.tail, cache.generated = segments, seen, seen, 0
        cache.resting = None
        return cache

    def extend(self, added: list[Segment], *, columns: int, tail: int, skipped: Collection[int] = ()) -> None:
        """Note that every layer, save for those `skipped`, has received the tokens of its segment in `added`.

        columns: input columns that these tokens come from. tail: how many of the last columns every layer received.
        """
        self._part(skipped, added)
        for segment in self.segments:
            if segment.start not in skipped:
                new = segment_of(added, segment.start)
                segment.slots = torch.cat([segment.slots, new.slots.to(segment.slots.device)], dim=1)
                segment.padded |= new.padded
        self.generated = self.generated + 1 if columns == 1 and self.seen else 0
        self.seen += columns
        self.tail = 0 if skipped else self.tail + columns if tail == columns else tail

    def _part(self, skipped: Collection[int], added: list[Segment]) -> None:
        """Cut segments so that the layers of each are all skipped or none, and receive the same tokens."""
        borders = {layer for layer in range(1, len(self.layers)) if (layer in skipped) != (layer - 1 in skipped)}
        starts = sorted(borders.union(segment.start for segment in (*self.segments, *added)))
        self.segments = [replace(segment_of(self.segments, start), start=start) for start in starts]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        raise UnsupportedError("this cache holds a halted prompt: go on with it inside `with halting(model, ...)`")

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last -tokens_to_remove columns; a positive number is the length to keep.

        Raises InputError, and changes nothing, where the cut would reach tokens that some layers halted.
        """
        cut = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        if cut > self.tail:
            raise InputError(
                f"cannot crop {cut} tokens: only the last {self.tail} are in every layer. "
                "Run the shorter prompt with a new cache."
            )
        layers: list[Any] = self.layers
        if any(layer.is_sliding and layer.get_seq_length() >= layer.sliding_window for layer in layers):
            raise InputError(
                "cannot crop: a sliding-window layer has dropped older tokens. Run the shorter prompt with a new cache."
            )
        if cut == 0:
            return
        for layer in layers:
            layer.crop(-cut)
        self._select(segment.slots[:, :-cut] for segment in self.segments)
        self.seen -= cut
        self.tail -= cut
        self.generated = max(0, self.generated - cut)

    def reset(self) -> None:
        raise UnsupportedError("a halted cache cannot be emptied for reuse: make a new DynamicCache")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.resting = None  # to reorder their states at each token would take longer than they can save
        self._select(segment.slots.index_select(0, beam_idx.to(segment.slots.device)) for segment in self.segments)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select_resting(lambda rows: rows.repeat_interleave(repeats))
        self._select(segment.slots.repeat_interleave(repeats, dim=0) for segment in self.segments)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_resting(lambda rows: rows[indices.to(rows.device)])
        self._select(segment.slots[indices.to(segment.slots.device)] for segment in self.segments)

    def _select_resting(self, chosen: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Keep the rows of the resting tokens that `chosen` makes of the numbers of all rows."""
        if self.resting is not None:
            tokens = self.resting.tokens
            rows = chosen(torch.arange(len(tokens.lengths), device=tokens.slots.device))
            self.resting = replace(self.resting, tokens=tokens.rows(rows.tolist()))

    def _select(self, slots: Iterable[torch.Tensor]) -> None:
        for segment, selected in zip(self.segments, list(slots), strict=True):
            segment.slots = selected
