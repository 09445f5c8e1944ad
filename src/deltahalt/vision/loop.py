"""The ViT loop: the host's own blocks, on fewer and fewer groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from deltahalt.errors import PolicyError
from deltahalt.families.base import Module
from deltahalt.stand_in import within_hook
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.policy import GroupView, Reduced, VisionPolicy
from deltahalt.vision.towers.base import Feed, PackedTower
from deltahalt.vision.views import view_groups


@dataclass
class TowerRun:
    """One pass of a pack of images through the blocks of `tower`, under a policy.

    loads: for each block, the groups that its attention ran on. taps: places and rows of mid-tower features.
    """

    tower: Module
    family: PackedTower
    policy: VisionPolicy
    feed: Feed
    loads: list[int] = field(default_factory=list)
    taps: list[tuple[GroupStream, torch.Tensor]] = field(default_factory=list)
    observed: list[GroupView | None] = field(default_factory=list)  # for a cut behind the tower

    def __post_init__(self) -> None:
        self.totals = self.feed.stream.segments[self.policy.unit].lengths

    def run(self) -> GroupStream:
        """The groups that are left behind the last block, with their states."""
        stream, taps = self.feed.stream, self.family.taps(self.tower)
        looked = self.policy.blocks(len(self.tower.blocks))
        for index, block in enumerate(self.tower.blocks):
            self.loads.append(len(stream.places))
            inputs = self.feed.block_inputs(index, stream)
            counts = self._counts(stream) if index in looked else self._lengths(stream)
            if counts == self._lengths(stream) and stream.sizes is None:
                stream = stream.advance(block(stream.patches, **inputs))
            else:
                stream = self._opened(index, stream, counts, inputs)
            if index in taps:
                self.taps.append((stream, taps[index](stream.patches)))
        return stream

    def features(self, stream: GroupStream) -> GroupStream:
        """The groups behind the merger, with their features in place of states: [G, 1, D]."""
        features = stream.advance(self.family.merge(self.tower, stream))
        return self._reduced(features, self.observed, self._counts(stream)) if self.observed else features

    def _opened(self, index: int, stream: GroupStream, counts: tuple[int, ...], inputs: dict[str, Any]) -> GroupStream:
        """The groups behind block number `index`, which runs in its two halves."""
        family, block, after = self.family, self.tower.blocks[index], stream

        def halves(hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
            nonlocal after
            if stream.sizes is None:
                update, projected = family.attention(block, hidden, **inputs)
            else:
                sizes = stream.sizes.repeat_interleave(stream.unit)
                rows = [length * stream.unit for length in stream.segments[self.feed.kinds[index]].lengths]
                rotary = inputs["position_embeddings"]
                update, projected = family.sized_attention(block, hidden, sizes, rows, rotary)
            before, after = stream.advance(hidden), stream.advance(hidden + update)
            views = list(self._views(index, before, update, projected, counts))
            if self.policy.cut == "attention":
                after = self._reduced(after, views, counts)
            after = after.advance(family.feed_forward(block, after.patches))
            if self.policy.cut == "block":
                after = self._reduced(after, views, counts)
            if self.policy.cut == "features":
                self.observed = views
            return after.patches

        hidden = within_hook(block, halves)(stream.patches, **inputs)
        return after.advance(hidden)

    def _views(
        self, index: int, stream: GroupStream, update: torch.Tensor, projected: torch.Tensor, counts: tuple[int, ...]
    ) -> Iterator[GroupView | None]:
        """What the policy is shown of each image or frame; None where nothing is to go.

        update: [S, D], projected: [S, 3 * D], of the block's attention on `stream`.
        """
        blocks, start = self.tower.blocks, 0
        heads, updates = self.family.heads(blocks[index], projected), stream.advance(update).hidden
        for total, length, count in zip(self.totals, self._lengths(stream), counts, strict=True):
            own = slice(start, start + length)
            start += length
            if count == length:
                yield None
            else:
                yield view_groups(
                    self.family, blocks, index, stream, updates, heads, self.feed.kinds[index], own, total
                )

    def _reduced(self, stream: GroupStream, views: Sequence[GroupView | None], counts: tuple[int, ...]) -> GroupStream:
        """The groups that the policy leaves of each image or frame."""
        if not any(views):
            return stream
        parts, start = [], 0
        for view, states, count in zip(views, stream.hidden.split(self._lengths(stream)), counts, strict=True):
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
        return stream.keep(
            torch.cat([part.index for part in parts]),
            torch.cat([part.states for part in parts]),
            torch.cat([_sizes(part) for part in parts]) if sized else None,
        )

    def _lengths(self, stream: GroupStream) -> tuple[int, ...]:
        """Groups in each image or frame, as the policy looks at them."""
        return stream.segments[self.policy.unit].lengths

    def _counts(self, stream: GroupStream) -> tuple[int, ...]:
        """Groups that the policy wants to leave in each of them."""
        return tuple(self.policy.count(*pair) for pair in zip(self.totals, self._lengths(stream), strict=True))


def _sizes(part: Reduced) -> torch.Tensor:
    """Sizes [k], which are one where nothing says otherwise."""
    return torch.ones(len(part.index), device=part.index.device) if part.sizes is None else part.sizes
