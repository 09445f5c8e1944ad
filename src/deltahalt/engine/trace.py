"""The record of one run through the layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from deltahalt.engine.cache import Segment
from deltahalt.engine.readable import Readable
from deltahalt.engine.resting import Resting
from deltahalt.engine.stream import TokenStream
from deltahalt.errors import PolicyError
from deltahalt.flops import LayerLoad


@dataclass
class Trace:
    """Which layers hold which tokens, who was halted where, and what each layer computed, as the run goes on."""

    segments: list[Segment]
    readable: list[Readable] = field(default_factory=list)  # halted tokens whose K and V deeper layers hold
    stages: list[tuple[int, tuple[torch.Tensor, ...]]] = field(default_factory=list)  # layer, slots [k] by row
    scores: list[tuple[torch.Tensor | None, ...]] = field(default_factory=list)  # by stage, then by row, [n]
    loads: list[tuple[LayerLoad, ...]] = field(default_factory=list)  # by layer, then by row
    nan_checks: list[tuple[torch.Tensor, str]] = field(default_factory=list)  # whether scores hold a NaN; the message
    resting: Resting | None = None  # halted tokens that may run on in a later turn
    resumed: tuple[int, ...] = ()  # by row, the number of tokens of earlier turns that run on

    @classmethod
    def begin(cls, stream: TokenStream, *, dropped: bool) -> "Trace":
        """Every layer holds the whole stream. dropped: tokens were dropped before layer 0, noted as layer -1."""
        trace = cls([Segment(0, stream.slots, stream.padded)])
        if dropped:
            trace.stages.append((-1, _slots_by_row(stream)))
            trace.scores.append((None,) * len(stream.lengths))
        return trace

    def halt(self, layer: int, stream: TokenStream, scores: Mapping[int, torch.Tensor]) -> None:
        """Note that only `stream` stays active after the layer; deeper layers hold it and the readable halted tokens.

        scores: what tokens were chosen by, [n] by row.
        """
        self.scores.append(tuple(map(scores.get, range(len(stream.lengths)))))
        held = [*(readable.halted for readable in self.readable), stream]
        slots = torch.cat([part.slots for part in held], dim=1)
        self.segments.append(Segment(layer + 1, slots, any(part.padded for part in held)))
        self.stages.append((layer, _slots_by_row(stream)))

    def resume(self, layer: int, stream: TokenStream, resumed: tuple[int, ...]) -> None:
        """Note that deeper layers hold `stream`, of which these numbers of tokens, by row, are of earlier turns."""
        self.resumed = resumed
        if self.segments[-1].start == layer + 1:
            self.segments.pop()
        self.segments.append(Segment(layer + 1, stream.slots, stream.padded))

    def log(
        self, attended: tuple[int, ...], ffn: tuple[int, ...], kv_only: tuple[int, ...], lookahead: tuple[int, ...]
    ) -> None:
        """Note one layer's work, as a LayerLoad names it, by row."""
        regressed = [sum(readable.pairs(row) for readable in self.readable) for row in range(len(ffn))]
        self.loads.append(tuple(map(LayerLoad, attended, ffn, kv_only, lookahead, regressed)))

    def readable_tokens(self, rows: int) -> tuple[int, ...]:
        """For each of the rows, the number of halted tokens whose K and V the next layer holds."""
        return tuple(sum(readable.halted.lengths[row] for readable in self.readable) for row in range(rows))

    def refuse_nan(self) -> None:
        """Raise PolicyError if a policy scored a token as NaN. Waits for the device."""
        for found, message in self.nan_checks:
            if found:
                raise PolicyError(message)


def _slots_by_row(stream: TokenStream) -> tuple[torch.Tensor, ...]:
    return tuple(stream.slots[row, stream.row(row)] for row in range(len(stream.lengths)))
