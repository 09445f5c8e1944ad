"""The ViT loop: it runs the host's own blocks on the groups that are still active."""

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
    """One pass of a pack of images through a ViT under a policy. `stream` holds the active groups.

    loads: what each block computed. taps: the groups as features from the middle of the tower. observed: views of the
    last deciding block, for a policy that acts after the tower.
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
        """Run all blocks and return the groups that are active after the last one, with their states."""
        blocks = self.family.blocks(self.tower)
        deciding = self.policy.blocks(len(blocks))
        for index, block in enumerate(blocks):
            self._tap(index)
            segments = self.stream.segments[self.feed.kinds[index]].lengths
            counts = self._counts() if index in deciding else self._lengths()
            whole = counts == self._lengths() and self.stream.sizes is None
            layer = block if whole else within_hook(block, partial(self._halves, index, counts))
            hidden = layer(self.stream.rows, **self.family.block_inputs(self.feed, index, self.stream))
            self.stream = self.stream.advance(hidden)
            inside = self.policy.cut == "attention"
            self.loads.append(BlockLoad(segments, len(self.stream.places) if inside else sum(segments)))
        self._tap(len(blocks))
        return self.stream

    def features(self) -> GroupStream:
        """Return the tower's features of the groups that are kept in the end."""
        self.stream = self.family.features(self.tower, self.stream, self.taps)
        self._reduce(self.observed, self._counts())
        return self.stream

    def _tap(self, number: int) -> None:
        """Store the tower's features of the groups after `number` blocks, if it takes features there."""
        if number in self.feed.taps:
            self.taps.append(self.feed.taps[number](self.stream))

    def _halves(self, index: int, counts: tuple[int, ...], hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the attention and then the MLP of block `index`, and keep `counts` groups of each image or frame."""
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
        """Yield the policy's view of each image or frame; None where all groups stay."""
        start = 0
        for number, (total, length, count) in enumerate(zip(self.totals, self._lengths(), counts, strict=True)):
            yield None if count == length else shown.view(number, slice(start, start + length), total)
            start += length

    def _reduce(self, views: Sequence[GroupView | None], counts: tuple[int, ...]) -> None:
        """Let the policy reduce each image or frame to `counts` groups."""
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
                raise PolicyError(
                    f"{self.policy.name} gave an index of shape {list(part.index.shape)}; it must keep {count} groups"
                )
            parts.append(replace(part, index=part.index + start))
            start += len(states)
        sized = any(part.sizes is not None for part in parts)
        self.stream = stream.keep(
            torch.cat([part.index for part in parts]),
            torch.cat([part.states for part in parts]),
            torch.cat([_sizes(part) for part in parts]) if sized else None,
        )

    def _lengths(self) -> tuple[int, ...]:
        """Return the number of active groups in each image or frame, whichever is the policy's unit."""
        return self.stream.segments[self.policy.unit].lengths

    def _counts(self) -> tuple[int, ...]:
        """Return the number of groups that the policy keeps in each image or frame."""
        return tuple(self.policy.count(*pair) for pair in zip(self.totals, self._lengths(), strict=True))


def _sizes(part: Reduced) -> torch.Tensor:
    """Return the sizes [k] of the kept groups; 1 each where the policy gives none."""
    return torch.ones(len(part.index), device=part.index.device) if part.sizes is None else part.sizes
