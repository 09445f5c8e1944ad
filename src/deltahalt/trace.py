"""What a run through the layers leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from deltahalt.cache import Segment
from deltahalt.flops import LayerLoad
from deltahalt.stream import TokenStream


@dataclass
class Trace:
    """Which layers hold which tokens, who was halted where, and what each layer computed, as the run goes on."""

    segments: list[Segment]
    frozen: list[TokenStream] = field(default_factory=list)  # halted tokens that go on serving K and V
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

    def halt(
        self,
        layer: int,
        active: list[torch.Tensor],
        scores: Mapping[int, torch.Tensor],
        stream: TokenStream,
        *,
        freeze: bool,
    ) -> TokenStream:
        """Halt all tokens but the `active` ones ([k] by row) and return these; deeper layers hold no others.

        scores: what they were chosen by, [n] by row. freeze: the halted ones go on serving K and V of their last hidden
        state.
        """
        if freeze:
            self.frozen.append(
                stream.keep([_complement(kept, n) for kept, n in zip(active, stream.lengths, strict=True)])
            )
        self.scores.append(tuple(map(scores.get, range(len(active)))))
        stream = stream.keep(active)
        held = [*self.frozen, stream]
        slots = torch.cat([part.slots for part in held], dim=1)
        self.segments.append(Segment(layer + 1, slots, any(part.padded for part in held)))
        self.stages.append((layer, _slots_by_row(stream)))
        return stream

    def log(
        self,
        attended: tuple[int, ...],
        fed: tuple[int, ...],
        served: tuple[TokenStream, ...],
        looked: tuple[int, ...],
    ) -> None:
        """Note one layer's work, as a LayerLoad names it, by row."""
        frozen = [sum(part.lengths[row] for part in served) for row in range(len(fed))]
        self.loads.append(tuple(map(LayerLoad, attended, fed, frozen, looked)))


def _slots_by_row(stream: TokenStream) -> tuple[torch.Tensor, ...]:
    return tuple(stream.slots[row, stream.row(row)] for row in range(len(stream.lengths)))


def _complement(index: torch.Tensor, length: int) -> torch.Tensor:
    """The numbers below `length` that are not in `index`, ascending."""
    others = torch.ones(length, dtype=torch.bool, device=index.device)
    others[index] = False
    return others.nonzero().squeeze(1)
