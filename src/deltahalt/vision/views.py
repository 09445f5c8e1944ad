"""What a ViT-stage method is shown of a block."""

from collections.abc import Sequence

import torch

from deltahalt.families.base import Module
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.policy import GroupView
from deltahalt.vision.towers.base import PackedTower


def view_groups(
    family: PackedTower,
    blocks: Sequence[Module],
    index: int,
    stream: GroupStream,
    update: torch.Tensor,
    heads: Sequence[torch.Tensor],
    kind: str,
    own: slice,
    total: int,
) -> GroupView:
    """The groups `own` of `stream`, which enters block number `index`, without the rest of the pack.

    update: [G, u, D] output of its attention. heads: its queries and keys before rotary embedding, [S, heads, d] each.
    kind: the segments that it keeps apart. total: groups that the image or frame began with.
    """
    hidden, attention = stream.hidden[own], blocks[index].attn
    rows = slice(own.start * stream.unit, own.stop * stream.unit)
    queries, keys = (part[rows] for part in heads[:2])
    cos, sin = (part[own].flatten(0, 1).to(hidden.device) for part in stream.rotary)
    runs = torch.unique_consecutive(stream.segments[kind].owner[own], return_counts=True)[1]
    deeper = blocks[min(index + 1, len(blocks) - 1)]
    return GroupView(
        block=index,
        total=total,
        places=stream.places[own].to(hidden.device),
        hidden_in=hidden,
        update=update[own],
        queries=lambda: family.rotate(queries, keys, cos, sin)[0].transpose(0, 1),
        keys=lambda: family.rotate(queries, keys, cos, sin)[1].transpose(0, 1),
        raw_keys=lambda: keys.transpose(0, 1),
        scaling=attention.scaling,
        segments=tuple(runs.tolist()),
        sizes=torch.ones(len(hidden), device=hidden.device) if stream.sizes is None else stream.sizes[own],
        normed=deeper.norm1,
    )
