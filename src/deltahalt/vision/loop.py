"""The ViT loop: the host's own blocks, on fewer and fewer groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from deltahalt.errors import PolicyError
from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import within_hook
from deltahalt.vision.flops import BlockLoad
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.policy import GroupView, Reduced, VisionPolicy
from deltahalt.vision.towers.base import Feed, Tower
from deltahalt.vision.views import ShownBlock


@dataclass
class TowerRun:
    """One pass of a pack of images through a ViT, under a policy.

    stream: the groups that are active. loads: what each block computed. taps: what was taken of the groups in
    mid-tower. observed: what a policy that acts behind the tower has seen in it.
    """

    tower: Module
    family: Tower
    policy: VisionPolicy
    feed: Feed
    loads: list[BlockLoad] = field(default_factory=list)
    taps: list[GroupStream] = field(default_factory=list)
    observed: list[GroupView | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream = self.feed.stream
        self.totals = self._lengths()

    def blocks(self) -> GroupStream:
        """Run the blocks. Returns the groups that are left behind the last one, with their states."""
        blocks = self.family.blocks(self.tower)
        looked = self.policy.blocks(len(blocks))
        for index, block in enumerate(blocks):
            self._tap(index)
            segments = self.stream.segments[self.feed.kinds[index]].lengths
            counts = self._counts() if index in looked else self._lengths()
            whole = counts == self._lengths() and self.stream.sizes is None
            layer = block if whole else within_hook(block, partial(self._halves, index, counts))
            hidden = layer(self.stream.rows, **self.family.block_inputs(self.feed, index, self.stream))
            self.stream = self.stream.advance(hidden)
            inside = self.policy.cut == "attention"
            self.loads.append(BlockLoad(segments, len(self.stream.places) if inside else sum(segments)))
        self._tap(len(blocks))
        return self.stream

    def features(self) -> GroupStream:
        """What the tower gives of the groups that are left in the end."""
        self.stream = self.family.features(self.tower, self.stream, self.taps)
        self._reduce(self.observed, self._counts())
        return self.stream

    def _tap(self, number: int) -> None:
        """Take what is to be taken of the groups behind so many blocks."""
        if number in self.feed.taps:
            self.taps.append(self.feed.taps[number](self.stream))

    def _halves(self, index: int, counts: tuple[int, ...], hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run block number `index` in its two halves, and leave `counts` groups of each image or frame."""
        blocks = self.family.blocks(self.tower)
        before, block, kind = self.stream.advance(hidden), blocks[index], self.feed.kinds[index]
        if before.sizes is None:
            update, projected = self.family.attention(block, hidden, **inputs)
        else:
            lengths = [before.lead + length * before.unit for length in before.segments[kind].lengths]
            update, projected = self.family.sized_attention(block, hidden, before.row_sizes, lengths, **inputs)
        shown = ShownBlock(self.family, blocks, index, kind, before, update.flatten(0, -2), projected.flatten(0, -2))
        views = list(self._views(shown, counts))
        self.stream = before.advance(hidden + update)
        if self.policy.cut == "attention":
            self._reduce(views, counts)
        self.stream = self.stream.advance(self.family.feed_forward(block, self.stream.rows))
        if self.policy.cut == "block":
            self._reduce(views, counts)
        if self.policy.cut == "features":
            self.observed = views
        return self.stream.rows

    def _views(self, shown: ShownBlock, counts: tuple[int, ...]) -> Iterator[GroupView | None]:
        """What the policy is shown of each image or frame; None where nothing is to go."""
        start = 0
        for number, (total, length, count) in enumerate(zip(self.totals, self._lengths(), counts, strict=True)):
            yield None if count == length else shown.view(number, slice(start, start + length), total)
            start += length

    def _reduce(self, views: Sequence[GroupView | None], counts: tuple[int, ...]) -> None:
        """Have the policy leave `counts` groups of each image or frame."""
        if not any(views):
            return
        stream, parts, start = self.stream, [], 0
        for view, states, count in zip(views, stream.groups.split(self._lengths()), counts, strict=True):
            part = Reduced(torch.arange(count, device=states.device), states)
            if view is not None:
                part = self.policy.reduce(view, states, count)
            elif stream.sizes is not None:
                part = replace(part, sizes=stream.sizes[start : start + count])
            if part.index.shape != (count,):
                raise PolicyError(f"{self.policy.name} left {list(part.index.shape)} groups of a wanted {count}")
            parts.append(replace(part, index=part.index + start))
            start += len(states)
        sized = any(part.sizes is not None for part in parts)
        self.stream = stream.keep(
            torch.cat([part.index for part in parts]),
            torch.cat([part.states for part in parts]),
            torch.cat([_sizes(part) for part in parts]) if sized else None,
        )

    def _lengths(self) -> tuple[int, ...]:
        """Active groups in each image or frame, as the policy looks at them."""
        return self.stream.segments[self.policy.unit].lengths

    def _counts(self) -> tuple[int, ...]:
        """Groups that the policy wants to leave in each of them."""
        return tuple(self.policy.count(*pair) for pair in zip(self.totals, self._lengths(), strict=True))


def _sizes(part: Reduced) -> torch.Tensor:
    """Sizes [k], which are one where nothing says otherwise."""
    return torch.ones(len(part.index), device=part.index.device) if part.sizes is None else part.sizes
