"""A ViT while groups halt in it: what runs in place of its forward."""

import itertools
from typing import Any

import torch

from deltahalt.errors import InputError, UnsupportedError
from deltahalt.families.base import Module
from deltahalt.vision.flops import BlockLoad, TowerShape
from deltahalt.vision.groups import GroupStream
from deltahalt.vision.loop import TowerRun
from deltahalt.vision.policy import VisionPolicy
from deltahalt.vision.report import VisionReport
from deltahalt.vision.towers.base import Feed, PackedTower


class HaltedTower:
    """A ViT under `halting_vision`: its forward while attached, and the report of the latest pack of images."""

    def __init__(self, tower: Module, family: PackedTower, policy: VisionPolicy) -> None:
        policy.blocks(len(tower.blocks))  # refuses what does not fit
        self.tower, self.family, self.policy = tower, family, policy
        self.shape = TowerShape.of(tower, family)
        self._report: VisionReport | None = None

    @property
    def report(self) -> VisionReport:
        """The latest VisionReport. Raises InputError before the first."""
        if self._report is None:
            raise InputError("there is no report yet: give the model an image inside `with halting_vision(...)` first")
        return self._report

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, *, return_dict: bool | None = None, **options: Any
    ) -> Any:
        """Stand in for the tower's forward, with the same arguments, and features of the same shape.

        Features of groups that are gone are NaN, for the decoder's seam to find; their deepstack features are 0.
        Raises UnsupportedError for what halting cannot serve.
        """
        for flag in ("output_hidden_states", "output_attentions"):
            if options.pop(flag, None) or getattr(self.tower.config, flag, False):
                raise UnsupportedError(f"{flag} of a ViT is not supported with halting: its blocks hold fewer groups")
        if self.tower.training and getattr(self.tower, "gradient_checkpointing", False):
            raise UnsupportedError("gradient checkpointing recomputes blocks on other groups: call model.eval() first")
        feed = self.family.feed(self.tower, hidden_states, grid_thw, **options)
        run = TowerRun(self.tower, self.family, self.policy, feed)
        last = run.blocks()
        stream = run.features()
        self._fill(feed, run, last, stream)
        full = [feed.stream.segments[kind].lengths for kind in feed.kinds]
        self._report = VisionReport(
            shape=self.shape,
            groups=feed.stream.segments["image"].lengths,
            kept=_kept(feed, stream),
            loads=tuple(run.loads),
            full_loads=tuple(BlockLoad(segments, sum(segments)) for segments in full),
            left=len(last.places),
        )
        return feed.output.to_tuple() if return_dict is False else feed.output

    def _fill(self, feed: Feed, run: TowerRun, last: GroupStream, stream: GroupStream) -> None:
        """Put what the tower computed into the host's output object, in full length."""
        groups = len(feed.order)
        feed.output.pooler_output = stream.spread(stream.hidden.flatten(1), groups, torch.nan)
        states = last.spread(last.hidden, groups, torch.nan)
        feed.output.last_hidden_state = states[feed.stream.places].flatten(0, 1)
        if run.taps:
            feed.output.deepstack_features = []
            for tapped, rows in run.taps:
                gone = ~torch.isin(tapped.places, stream.places).to(rows.device)
                feed.output.deepstack_features.append(tapped.spread(rows.masked_fill(gone[:, None], 0), groups, 0))


def _kept(feed: Feed, stream: GroupStream) -> tuple[torch.Tensor, ...]:
    """For each image, the ascending raster places of the groups that are left of it."""
    groups = feed.stream.segments["image"].lengths
    places = stream.places.split(stream.segments["image"].lengths)
    starts = itertools.accumulate(groups, initial=0)
    return tuple((own - start).sort().values for own, start in zip(places, starts, strict=False))
