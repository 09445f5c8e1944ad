"""The masking oracle: the stock model over the whole prompt, whose deeper layers may not read halted tokens.

It shares nothing with the engine. Nothing is compacted: every layer runs on every column, in original positions, under
a mask written out by hand. So a halted run agrees with it only if compaction, positions, windows, masks and caches are
all right.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from deltahalt import Report
from deltahalt.host.compat import CACHE, blocks_cross_windows, layer_output
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.forecast import Predicted
from helpers.tiny import Windows


class Feed:
    """Feeds a model a left-padded prompt and then more tokens; keeps mask, positions and cache in step."""

    def __init__(self, model: Any, cache: DynamicCache | None = None) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config) if cache is None else cache
        self.mask = torch.empty(0, 0, dtype=torch.long)
        self.ahead: torch.Tensor | int = 0  # [B, 1] how far positions run before the number of tokens

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Logits after `ids` [B, n]; mask [B, n] tells tokens from padding.

        positions: [3, B, n] of a prompt with images in it, where they do not just count; later tokens follow on them.
        """
        new = torch.ones_like(ids) if mask is None else mask
        self.mask = torch.cat([self.mask, new], dim=1) if len(self.mask) else new
        places = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if positions is None:
            positions = places + self.ahead
        else:
            self.ahead = positions.amax(dim=0)[:, -1:] - places[:, -1:]
        with torch.no_grad():
            return self.model(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=positions,
                **{CACHE: self.cache},
                use_cache=True,
                **options,
            ).logits


class Oracle(Feed):
    """Feeds the stock model, under masks that forbid deeper layers to read what `report` says was halted.

    windows: by layer, how many columns back it attends. serving: the layers whose halted tokens may be read after
    all, but stay at their last hidden state; or change as `penalties` says: by layer, the penalty of a regression on
    the last `tail` tokens. inside: the layers whose tokens halt between attention and FFN.
    blocks: [B, T] the image of a prompt's token within which it sees all others; -1 for none.
    """

    def __init__(
        self,
        model: Any,
        windows: Windows,
        report: Report,
        *,
        serving: Collection[int] = (),
        inside: tuple[int, ...] = (),
        blocks: torch.Tensor | None = None,
        penalties: Mapping[int, float] = {},
        tail: int = 0,
    ) -> None:
        super().__init__(model, DynamicCache())  # without a config: every layer stores every column
        self.windows, self.report, self.serving, self.inside, self.blocks = windows, report, serving, inside, blocks
        self.penalties, self.tail = penalties, tail
        self.stopped: dict[int, torch.Tensor] = {}  # by layer of `penalties`, [B, T, D] where its tokens stop
        self.active: list[torch.Tensor] = []  # [B, columns] of the tokens that enter each layer, and leave the last
        self.readable: list[torch.Tensor] = []  # the same, with those that serve K/V

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        *,
        report: Report | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """report: of a later turn in which tokens halted."""
        new = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        halting = report if self.active else self.report
        active, readable = (_after_halting(new, halting, self.windows, without) for without in ((), self.serving))
        if self.active:
            active = [torch.cat(both, dim=1) for both in zip(self.active, active, strict=True)]
            readable = [torch.cat(both, dim=1) for both in zip(self.readable, readable, strict=True)]
        self.active, self.readable, self.stopped = active, readable, {}
        with ExitStack() as undo:
            for index, layer in enumerate(self.model.get_decoder().layers):
                self._mask(index, layer, ids.shape[1], undo)
                if self.serving:
                    self._freeze(index, layer, ids.shape[1], undo)
            return super().__call__(ids, mask, positions, **options)

    def _mask(self, index: int, layer: nn.Module, new: int, undo: ExitStack) -> None:
        """Replace the mask that the host hands to a layer by one of [B, 1, new, columns]."""
        readable = self.readable[index]
        key = torch.arange(readable.shape[1])
        query = key[-new:, None]
        visible = key <= query
        if self.blocks is not None and new > 1:
            block = torch.nn.functional.pad(self.blocks, (0, len(key) - self.blocks.shape[1]), value=-1)
            together = (block[:, -new:, None] == block[:, None]) & (block[:, None] >= 0)
            visible = visible | together
        window = self.windows[index]
        if window is not None:
            visible = visible & (key > query - window)
            if self.blocks is not None and new > 1 and blocks_cross_windows():
                visible = visible | together
        visible = visible & readable[:, None, :]
        # Padding and halted tokens read themselves: nobody looks at the result, and no row is left empty.
        visible = visible | ((key == query) & ~readable[:, -new:, None])
        mask = visible[:, None]
        if self.model.get_decoder().config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)

        def replace(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return args, kwargs | {"attention_mask": mask}

        undo.callback(layer.register_forward_pre_hook(replace, with_kwargs=True).remove)

    def _freeze(self, index: int, layer: Any, new: int, undo: ExitStack) -> None:
        """After the layer, put tokens that it does not compute back to their last hidden state."""
        entering, leaving = (active[:, -new:, None] for active in self.active[index : index + 2])
        between: list[torch.Tensor] = []

        def keep(_: nn.Module, args: Any) -> None:
            between.append(args[0])

        def put_back(_: nn.Module, args: Any, output: Any) -> Any:
            hidden = layer_output(output)
            if index in self.inside:
                hidden = torch.where(entering & ~leaving, between[0], hidden)
            hidden = torch.where(entering, hidden, args[0])
            if new > 1 and self.penalties:
                where_it_stops = torch.where(leaving, between[0], hidden) if index in self.inside else hidden
                hidden = self._changed(index, where_it_stops, hidden)
            return (hidden,) if isinstance(output, tuple) else hidden

        feed_forward_norm = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
        undo.callback(feed_forward_norm.register_forward_pre_hook(keep).remove)
        undo.callback(layer.register_forward_hook(put_back).remove)

    def _changed(self, index: int, stopped: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The states after a layer, those of halted tokens as regressions on the prompt's last tokens tell them."""
        hidden = hidden.clone()
        if index in self.penalties:
            self.stopped[index] = stopped
        for decided, before in self.stopped.items():
            gone = self.active[decided][:, -hidden.shape[1] :] & ~self.active[decided + 1][:, -hidden.shape[1] :]
            for row in range(len(hidden)):
                if gone[row].any():
                    change = hidden[row, -self.tail :] - before[row, -self.tail :]
                    told = fitted(before[row, -self.tail :], change, before[row, gone[row]], self.penalties[decided])
                    hidden[row, gone[row]] = before[row, gone[row]] + told
        return hidden


def oracle_for(model: Any, windows: Windows, policy: AnyPolicy, report: Report) -> Oracle:
    """The oracle of a policy whose starts are layer indices. report: of its prompt, which may be whole."""
    return Oracle(
        model,
        windows,
        report,
        serving=[stage.start for stage in policy.stages if stage.halted_states is not None],
        inside=tuple(stage.start for stage in policy.stages if stage.boundary == "attention"),
        penalties={
            stage.start: stage.halted_states.penalty
            for stage in policy.stages
            if isinstance(stage.halted_states, Predicted)
        },
        tail=min(stage.keep_last for stage in policy.stages),
    )


def _after_halting(
    real: torch.Tensor, report: Report | None, windows: Windows, without: Collection[int]
) -> list[torch.Tensor]:
    """Of a call's columns `real` [B, n], those that enter each layer and leave the last, but for stages `without`."""
    active = [real.clone() for _ in range(len(windows) + 1)]
    for decided, kept in () if report is None else report.stages:
        if decided in without:
            continue
        for row, positions in enumerate(kept):
            padding = int((~real[row]).sum())
            for deeper in active[decided + 1 :]:
                deeper[row] = False
                deeper[row, positions + padding] = True
    return active


@contextmanager
def reports_of(model: nn.Module, halted: Any) -> Iterator[list[Any]]:
    """The report after each call of the model inside the block; None before the first prompt."""
    reports: list[Report | None] = []
    hook = model.register_forward_hook(lambda *_: reports.append(halted.report if halted.ran else None))
    try:
        yield reports
    finally:
        hook.remove()


def fitted(known: torch.Tensor, change: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
    """Ridge regression with an intercept, as least squares with the penalty in rows of their own; in double."""
    known, wanted = (states.double() / states.double().norm(dim=1, keepdim=True) for states in (known, wanted))
    middle, mean = known.mean(dim=0), change.double().mean(dim=0)
    known = known - middle
    strength = penalty * known.square().sum(dim=1).mean()
    rows = torch.cat([known, strength.sqrt() * torch.eye(known.shape[1], dtype=torch.double)])
    targets = torch.cat([change.double() - mean, torch.zeros(known.shape[1], change.shape[1], dtype=torch.double)])
    return (mean + (wanted - middle) @ torch.linalg.lstsq(rows, targets).solution).to(change.dtype)
