"""The views of a block that a ViT-stage policy is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltahalt.host.families.base import Module
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.policy import GroupView
from deltahalt.vision.towers.base import Tower


@dataclass(frozen=True)
class ShownBlock:
    """Block `index` after its attention ran on a pack of images; `view` gives the view of one image or frame.

    kind: name of the segments in `stream` that its attention keeps apart. stream: the groups that entered the block.
    update: [S, D], attention output. projected: [S, 3 * D], queries, keys and values before rotary embedding.
    """

    family: Tower
    blocks: Sequence[Module]
    index: int
    kind: str
    stream: GroupStream
    update: torch.Tensor
    projected: torch.Tensor

    def view(self, number: int, own: slice, total: int) -> GroupView:
        """Return the view of image or frame `number`, which has the groups `own`. total: its groups before halting."""
        stream, block = self.stream, self.blocks[self.index]
        members, places = stream.members[own].to(stream.hidden.device), stream.places[own]
        rows = members.flatten()
        queries, keys, _ = self.family.heads(block, self.projected[rows])
        class_queries, class_keys, _ = self.family.heads(block, self.projected[stream.class_rows(number)])
        rotary = tuple(part[rows.to(part.device)].to(rows.device) for part in stream.rotary)
        runs = torch.unique_consecutive(stream.segments[self.kind].owner[own], return_counts=True)[1]
        deeper = self.blocks[min(self.index + 1, len(self.blocks) - 1)]
        return GroupView(
            block=self.index,
            total=total,
            places=places.to(rows.device),
            hidden_in=stream.hidden[members],
            update=self.update[members],
            queries=lambda: self.family.rotate(queries, keys, *rotary)[0].transpose(0, 1),
            keys=lambda: self.family.rotate(queries, keys, *rotary)[1].transpose(0, 1),
            raw_keys=lambda: keys.transpose(0, 1),
            class_queries=class_queries.transpose(0, 1),
            class_keys=class_keys.transpose(0, 1),
            scaling=self.family.scaling(block),
            segments=tuple(runs.tolist()),
            sizes=torch.ones(len(places), device=rows.device) if stream.sizes is None else stream.sizes[own],
            normed=self.family.norm(deeper),
        )
