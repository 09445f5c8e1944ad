"""A ViT while groups halt in it: what runs in place of its forward."""

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
    """A ViT under `halting_vision`: its forward while attached, and the report of the latest pack of images."""

    def __init__(self, tower: Module, family: Tower, policy: VisionPolicy) -> None:
        policy.blocks(len(family.blocks(tower)))  # refuses what does not fit
        self.tower, self.family, self.policy = tower, family, policy
        self.shape = TowerShape.of(tower, family)
        self.places: dict[Place, Answer] = {forward_of(tower): self.forward}
        self._report: VisionReport | None = None

    @property
    def report(self) -> VisionReport:
        """The latest VisionReport. Raises InputError before the first."""
        if self._report is None:
            raise InputError("there is no report yet: give the model an image inside `with halting_vision(...)` first")
        return self._report

    def forward(
        self, _block: Block, _original: Any, *args: Any, return_dict: bool | None = None, **options: Any
    ) -> Any:
        """Stand in for the tower's forward, with the same arguments, and output of the same shape.

        What the host makes features of is NaN for groups that are gone, for the decoder's seam to find.
        Raises UnsupportedError for what halting does not support, and InputError for features that are not finite.
        """
        for flag in self.family.flags:
            if options.pop(flag, None) or getattr(self.tower.config, flag, False):
                raise UnsupportedError(f"{flag} of a ViT is not supported with halting: its blocks hold fewer groups")
        if self.tower.training and any(getattr(part, "gradient_checkpointing", False) for part in self.tower.modules()):
            raise UnsupportedError("gradient checkpointing recomputes blocks on other groups: call model.eval() first")
        feed = self.family.feed(self.tower, *args, **options)
        run = TowerRun(self.tower, self.family, self.policy, feed)
        last = run.blocks()
        stream = run.features()
        if not stream.rows.isfinite().all():
            raise InputError(
                "the ViT made features that are not finite: it may overflow in float16; load the model in bfloat16 or "
                "float32"
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
    """For each image, the ascending raster places of the groups that are left of it."""
    groups = feed.stream.segments["image"].lengths
    places = stream.places.split(stream.segments["image"].lengths)
    starts = itertools.accumulate(groups, initial=0)
    return tuple((own - start).sort().values for own, start in zip(places, starts, strict=False))
