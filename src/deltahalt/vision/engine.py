"""The halted ViT, which runs in place of the host tower's forward."""

import itertools
from typing import Any

import torch

from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.blocks import Answer, Block, Place, forward_of
from deltahalt.host.families.base import Module
from deltahalt.vision.flops import BlockLoad, TowerShape
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.loop import TowerRun
from deltahalt.vision.policy import VisionPolicy
from deltahalt.vision.report import VisionReport
from deltahalt.vision.towers.base import Feed, Tower


class HaltedTower:
    """A ViT under `halting_vision`. It replaces the tower's forward and reports on the latest pack of images."""

    def __init__(self, tower: Module, family: Tower, policy: VisionPolicy) -> None:
        policy.blocks(len(family.blocks(tower)))  # raises PolicyError if the policy does not fit
        self.tower, self.family, self.policy = tower, family, policy
        self.shape = TowerShape.of(tower, family)
        self.places: dict[Place, Answer] = {forward_of(tower): self.forward}
        self._report: VisionReport | None = None

    @property
    def report(self) -> VisionReport:
        """The VisionReport of the latest pack of images. Raises InputError before the first pack."""
        if self._report is None:
            raise InputError("there is no report yet: give the model an image inside `with halting_vision(...)` first")
        return self._report

    def forward(
        self, _block: Block, _original: Any, *args: Any, return_dict: bool | None = None, **options: Any
    ) -> Any:
        """Run in place of the tower's forward, with the same arguments and an output of the same shape.

        The output is NaN for groups that were dropped; the halted decoder recognizes their tokens by that.
        Raises UnsupportedError for an option of the host that does not work with halting, and InputError for features
        that are not finite.
        """
        for flag in self.family.flags:
            if options.pop(flag, None) or getattr(self.tower.config, flag, False):
                raise UnsupportedError(f"{flag} is not supported in a halted ViT: leave it unset")
        if self.tower.training and any(getattr(part, "gradient_checkpointing", False) for part in self.tower.modules()):
            raise UnsupportedError("gradient checkpointing is not supported in a halted ViT: call model.eval() first")
        feed = self.family.feed(self.tower, *args, **options)
        run = TowerRun(self.tower, self.family, self.policy, feed)
        last = run.blocks()
        stream = run.features()
        if not stream.rows.isfinite().all():
            raise InputError(
                "the ViT computed features that are not finite, perhaps an overflow of float16: load the model in "
                "bfloat16 or float32"
            )
        output = self.family.output(feed, last, stream, run.taps)
        full = [feed.stream.segments[kind].lengths for kind in feed.kinds]
        self._report = VisionReport(
            shape=self.shape,
            groups=feed.stream.segments["image"].lengths,
            kept=_kept(feed, stream),
            loads=tuple(run.loads),
            full_loads=tuple(BlockLoad(segments, sum(segments)) for segments in full),
            left=len(last.places),
        )
        return output.to_tuple() if return_dict is False else output


def _kept(feed: Feed, stream: GroupStream) -> tuple[torch.Tensor, ...]:
    """Return for each image the raster positions of its kept groups, ascending."""
    groups = feed.stream.segments["image"].lengths
    places = stream.places.split(stream.segments["image"].lengths)
    starts = itertools.accumulate(groups, initial=0)
    return tuple((own - start).sort().values for own, start in zip(places, starts, strict=False))
