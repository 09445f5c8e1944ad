"""The packed towers of the Qwen family: images of any size, one after another; a file states what differs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import shell_of
from deltahalt.vision.groups import GroupStream, Segments
from deltahalt.vision.towers.base import Feed, Note, Tower


class PackedTower(Tower):
    """A ViT that runs a pack of images, [S, D], in blocks of `norm1`, `attn` (`qkv`, `proj`), `norm2` and `mlp`.

    The patches of a group are consecutive; `merger` makes a feature of them.
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
        """Parts of the host that do nothing, for its `mergers`."""
        return {}

    def feed(self, tower: Module, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> Feed:
        """Run the host's own forward, with blocks that only note what they are given.

        So embeddings, positions, windows and their order are the host's business in every version of it.
        hidden_states: pixels as the host's processor makes them; grid_thw: [images, 3] of frames, rows and columns of
        patches.
        """
        unit = self.unit(tower)
        blocks = [Note() for _ in tower.blocks]
        parts = {"blocks": nn.ModuleList(blocks), "merger": Number(unit), **self.stand_ins(tower)}
        output = type(tower).forward(shell_of(tower, **parts), hidden_states, grid_thw=grid_thw, **options)
        order, hidden = output.pooler_output.squeeze(1), blocks[0].hidden
        kinds = tuple(str(id(block.inputs["cu_seqlens"])) for block in blocks)  # blocks that attend alike share them
        segments = _images_and_frames(grid_thw.cpu(), unit, hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)
        first = torch.arange(len(order), device=hidden.device) * unit  # patch of each group
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
        if inputs.get("max_seqlen") is not None:  # only where the host's attention asks for it
            inputs["max_seqlen"] = max(segments.lengths) * stream.unit
        return inputs

    def features(self, tower: Module, last: GroupStream, taps: Sequence[GroupStream]) -> GroupStream:
        return _merged_by(tower.merger)(last)

    def output(self, feed: Feed, last: GroupStream, final: GroupStream, taps: Sequence[GroupStream]) -> Any:
        """Features of groups that are gone are NaN; their deepstack features are 0."""
        groups, output = len(feed.stream.places), feed.output
        output.pooler_output = final.spread(groups, torch.nan)
        output.last_hidden_state = last.spread(len(feed.stream.hidden), torch.nan)
        if taps:
            output.deepstack_features = [tap.spread(groups, 0) for tap in taps]
            gone = torch.ones(groups, dtype=torch.bool, device=final.places.device).index_fill(0, final.places, 0)
            for features in output.deepstack_features:
                features[gone.to(features.device)] = 0
        return output


def _merged_by(merger: Module) -> Callable[[GroupStream], GroupStream]:
    """What turns groups into the features that `merger` makes of them."""
    return lambda stream: stream.as_features(merger(stream.hidden))


def _images_and_frames(grid: torch.Tensor, unit: int, device: torch.device) -> dict[str, Segments]:
    """Which image and which frame each group belongs to; grid as in `feed`."""
    frames, groups = grid[:, 0], grid[:, 1:].prod(dim=1) // unit  # of each image, and of each of its frames
    image = torch.arange(len(grid)).repeat_interleave(frames * groups)
    frame = torch.arange(int(frames.sum())).repeat_interleave(groups.repeat_interleave(frames))
    return {"image": Segments.of(image.to(device)), "frame": Segments.of(frame.to(device))}


class Number(nn.Module):
    """A merger that gives each group its own number in place of a feature, [G, 1]."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(hidden) // self.unit, device=hidden.device)[:, None]
