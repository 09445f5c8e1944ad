"""What a run through the layers leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from deltahalt.engine.cache import Segment
from deltahalt.engine.served import Served
from deltahalt.engine.stream import TokenStream
from deltahalt.flops import LayerLoad


@dataclass
class Trace:
    """Which layers hold which tokens, who was halted where, and what each layer computed, as the run goes on."""

    segments: list[Segment]
    served: list[Served] = field(default_factory=list)  # halted tokens that go on serving K and V
    stages: list[tuple[int, tuple[torch.Tensor, ...]]] = field(default_factory=list)  # layer, slots [k] by row
    scores: list[tuple[torch.Tensor | None, ...]] = field(default_factory=list)  # by stage, then by row, [n]
    loads: list[tuple[LayerLoad, ...]] = field(default_factory=list)  # by layer, then by row

    @classmethod
    def begin(cls, stream: TokenStream, *, dropped: bool) -> "Trace":
        """From layer 0 on, every layer holds the whole stream. dropped: tokens were gone before; noted as layer -1."""
        trace = cls([Segment(0, stream.slots, stream.padded)])
        if dropped:
            trace.stages.append((-1, _slots_by_row(stream)))
            trace.scores.append((None,) * len(stream.lengths))
        return trace

    def halt(self, layer: int, stream: TokenStream, scores: Mapping[int, torch.Tensor]) -> None:
        """Note that only `stream` stays active behind the layer; deeper ones hold it and what is served, no others.

        scores: what tokens were chosen by, [n] by row.
        """
        self.scores.append(tuple(map(scores.get, range(len(stream.lengths)))))
        held = [*(served.halted for served in self.served), stream]
        slots = torch.cat([part.slots for part in held], dim=1)
        self.segments.append(Segment(layer + 1, slots, any(part.padded for part in held)))
        self.stages.append((layer, _slots_by_row(stream)))

    def log(
        self, attended: tuple[int, ...], fed: tuple[int, ...], frozen: tuple[int, ...], looked: tuple[int, ...]
    ) -> None:
        """Note one layer's work, as a LayerLoad names it, by row."""
        told = [sum(served.pairs(row) for served in self.served) for row in range(len(fed))]
        self.loads.append(tuple(map(LayerLoad, attended, fed, frozen, looked, told)))

    def serving(self, rows: int) -> tuple[int, ...]:
        """How many halted tokens of each of the rows serve K and V."""
        return tuple(sum(served.halted.lengths[row] for served in self.served) for row in range(rows))


def _slots_by_row(stream: TokenStream) -> tuple[torch.Tensor, ...]:
    return tuple(stream.slots[row, stream.row(row)] for row in range(len(stream.lengths)))
