"""What a ViT-stage method is shown of a block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltahalt.families.base import Module
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.policy import GroupView
from deltahalt.vision.towers.base import PackedTower


@dataclass(frozen=True)
class ShownBlock:
    """Block number `index` after its attention ran on a pack of images, which it shows one by one.

    stream: the groups as they entered it. kind: the segments that its attention keeps apart. update: [S, D] output of
    its attention. projected: [S, 3 * D] queries, keys and values on the way.
    """

    family: PackedTower
    blocks: Sequence[Module]
    index: int
    kind: str
    stream: GroupStream
    update: torch.Tensor
    projected: torch.Tensor

    def view(self, own: slice, total: int) -> GroupView:
        """The groups `own` of the stream, without the rest. total: groups that their image or frame began with."""
        stream, attention = self.stream, self.blocks[self.index].attn
        hidden, places = stream.hidden[own], stream.places[own]
        rows = slice(own.start * stream.unit, own.stop * stream.unit)
        queries, keys, _ = self.family.heads(self.blocks[self.index], self.projected[rows])
        cos, sin = (part[own].flatten(0, 1).to(hidden.device) for part in stream.rotary)
        runs = torch.unique_consecutive(stream.segments[self.kind].owner[own], return_counts=True)[1]
        deeper = self.blocks[min(self.index + 1, len(self.blocks) - 1)]
        return GroupView(
            block=self.index,
            total=total,
            places=places.to(hidden.device),
            hidden_in=hidden,
            update=self.update[rows].unflatten(0, (-1, stream.unit)),
            queries=lambda: self.family.rotate(queries, keys, cos, sin)[0].transpose(0, 1),
            keys=lambda: self.family.rotate(queries, keys, cos, sin)[1].transpose(0, 1),
            raw_keys=lambda: keys.transpose(0, 1),
            scaling=attention.scaling,
            segments=tuple(runs.tolist()),
            sizes=torch.ones(len(hidden), device=hidden.device) if stream.sizes is None else stream.sizes[own],
            normed=deeper.norm1,
        )
