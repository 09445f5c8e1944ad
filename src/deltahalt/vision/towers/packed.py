"""Packed towers (the Qwen family), which concatenate images of any size; a subclass defines what differs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import shell_of
from deltahalt.vision.groups import GroupStream, Segments
from deltahalt.vision.towers.base import Feed, Note, Tower


class PackedTower(Tower):
    """A ViT that runs a pack of images [S, D] in blocks of `norm1`, `attn` (`qkv`, `proj`), `norm2` and `mlp`.

    The patches of a group are consecutive, and `merger` turns them into one feature.
    """

    home = "visual"
    flags = ("output_hidden_states", "output_attentions")
    attn_name = "attn"
    norm_names = ("norm1", "norm2")
    projections = ("qkv",)
    out_name = "proj"
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]]  # the host's apply_rotary_pos_emb_vision, a staticmethod

    def blocks(self, tower: Module) -> Sequence[Module]:
        blocks: Sequence[Module] = tower.blocks
        return blocks

    def unit(self, tower: Module) -> int:
        return int(tower.spatial_merge_size**2)

    def patch_embedding(self, tower: Module) -> Module:
        return tower.patch_embed.proj

    def merger(self, tower: Module) -> Module:
        return tower.merger

    def scaling(self, block: Module) -> float:
        return float(block.attn.scaling)

    def stand_ins(self, tower: Module) -> dict[str, nn.Module]:
        """Return modules that do nothing, to run in place of the host's `mergers` in `feed`."""
        return {}

    def feed(self, tower: Module, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> Feed:
        """Run the host's own forward with blocks that only store their inputs.

        The host thus computes embeddings, positions, windows and their order, in each of its versions. hidden_states:
        pixels in the form of the host's processor. grid_thw: [images, 3], numbers of frames, rows and columns of
        patches.
        """
        unit = self.unit(tower)
        blocks = [Note() for _ in tower.blocks]
        parts = {"blocks": nn.ModuleList(blocks), "merger": Number(unit), **self.stand_ins(tower)}
        output = type(tower).forward(shell_of(tower, **parts), hidden_states, grid_thw=grid_thw, **options)
        order, hidden = output.pooler_output.squeeze(1), blocks[0].hidden
        kinds = _numbered([block.inputs["cu_seqlens"] for block in blocks])
        segments = _images_and_frames(grid_thw.cpu(), unit, hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)
        first = torch.arange(len(order), device=hidden.device) * unit  # [G] row of each group's first patch
        for kind, block in zip(kinds, blocks, strict=True):
            if kind not in segments:
                ends = block.inputs["cu_seqlens"][1:]
                segments[kind] = Segments.of(torch.bucketize(first, ends, right=True))
        stream = GroupStream(
            hidden=hidden,
            origin=rows,
            members=rows.view(-1, unit),
            places=order.argsort(),
            segments=segments,
            rotary=tuple(blocks[0].inputs["position_embeddings"]),
        )
        taps = {number: _merged_by(merger) for number, merger in self.mergers(tower).items()}
        return Feed(stream, tuple(block.inputs for block in blocks), kinds, taps, output)

    def block_inputs(self, feed: Feed, index: int, stream: GroupStream) -> dict[str, Any]:
        inputs = feed.inputs[index]
        if len(stream.places) == len(feed.stream.places):
            return inputs
        segments = stream.segments[feed.kinds[index]]
        inputs = inputs | {"cu_seqlens": segments.cu_seqlens(stream.unit), "position_embeddings": stream.rotary}
        if inputs.get("max_seqlen") is not None:  # the host sets it only for attention that needs it
            inputs["max_seqlen"] = max(segments.lengths) * stream.unit
        return inputs

    def features(self, tower: Module, last: GroupStream, taps: Sequence[GroupStream]) -> GroupStream:
        return _merged_by(tower.merger)(last)

    def output(self, feed: Feed, last: GroupStream, final: GroupStream, taps: Sequence[GroupStream]) -> Any:
        """Return features that are NaN for dropped groups, and deepstack features that are 0 for them."""
        groups, output = len(feed.stream.places), feed.output
        output.pooler_output = final.spread(groups, torch.nan)
        output.last_hidden_state = last.spread(len(feed.stream.hidden), torch.nan)
        if taps:
            output.deepstack_features = [tap.spread(groups, 0) for tap in taps]
            gone = torch.ones(groups, dtype=torch.bool, device=final.places.device).index_fill(0, final.places, 0)
            for features in output.deepstack_features:
                features[gone.to(features.device)] = 0
        return output


def _numbered(borders: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """Name each block's segments by the number of their first appearance; blocks that attend alike share a tensor."""
    numbers: dict[int, str] = {}
    return tuple(numbers.setdefault(id(own), str(len(numbers))) for own in borders)


def _merged_by(merger: Module) -> Callable[[GroupStream], GroupStream]:
    """Return a function that turns groups into the features that `merger` computes from them."""
    return lambda stream: stream.as_features(merger(stream.hidden))


def _images_and_frames(grid: torch.Tensor, unit: int, device: torch.device) -> dict[str, Segments]:
    """Return the segments of images and of frames. grid: as grid_thw in `feed`. unit: number of patches in a group."""
    frames, groups = grid[:, 0], grid[:, 1:].prod(dim=1) // unit  # per image, and per frame of an image
    image = torch.arange(len(grid)).repeat_interleave(frames * groups)
    frame = torch.arange(int(frames.sum())).repeat_interleave(groups.repeat_interleave(frames))
    return {"image": Segments.of(image.to(device)), "frame": Segments.of(frame.to(device))}


class Number(nn.Module):
    """A merger that returns the number of each group in place of a feature, [G, 1]."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(hidden) // self.unit, device=hidden.device)[:, None]
