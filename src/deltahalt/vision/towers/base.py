"""What the loop asks of a ViT, answered for the packed towers of the Qwen family; a file states what differs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from deltahalt.families.base import Module, Rotary
from deltahalt.stand_in import shell_of
from deltahalt.vision.attention import sized_attention
from deltahalt.vision.groups import GroupStream, Segments


@dataclass(frozen=True)
class Feed:
    """What the host feeds to its blocks, and how it orders what comes out.

    inputs: keyword arguments of each block. kinds: the name of the segments in `stream` that each block keeps apart.
    order: [G] the group of `stream` that each row of the output is of. output: the host's own, to be filled.
    """

    stream: GroupStream
    inputs: tuple[dict[str, Any], ...]
    kinds: tuple[str, ...]
    order: torch.Tensor
    output: Any

    def block_inputs(self, block: int, stream: GroupStream) -> dict[str, Any]:
        """Keyword arguments for a block that runs on `stream`."""
        inputs = self.inputs[block]
        if len(stream.places) == len(self.order):
            return inputs
        segments, (cos, sin) = stream.segments[self.kinds[block]], stream.rotary
        inputs = inputs | {
            "cu_seqlens": segments.cu_seqlens(stream.unit),
            "position_embeddings": (cos.flatten(0, 1), sin.flatten(0, 1)),
        }
        if inputs.get("max_seqlen") is not None:  # only where the host's attention asks for it
            inputs["max_seqlen"] = max(segments.lengths) * stream.unit
        return inputs


class PackedTower:
    """A ViT that runs a pack of images, [S, D], in blocks of `norm1`, `attn` (`qkv`, `proj`), `norm2` and `mlp`.

    The patches of a group are consecutive; `merger` makes a feature of them. A subclass in a file of its own names the
    `model_types` of the models that have it (as in `config.model_type`) and overrides what differs.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]]  # the host's apply_rotary_pos_emb_vision, a staticmethod

    def taps(self, tower: Module) -> Mapping[int, Module]:
        """Mergers of states in mid-tower, by the block that they come behind."""
        return {}

    def stand_ins(self, tower: Module) -> dict[str, nn.Module]:
        """Parts of the host that do nothing, for the mergers of `taps`."""
        return {}

    def feed(self, tower: Module, pixels: torch.Tensor, grid: torch.Tensor, **options: Any) -> Feed:
        """Run the host's own forward, with blocks that only note what they are given.

        So embeddings, positions, windows and their order are the host's business in every version of it.
        pixels: as the host's processor makes them; grid: [images, 3] of frames, rows and columns of patches.
        """
        unit = tower.spatial_merge_size**2
        blocks = [Note() for _ in tower.blocks]
        parts = {"blocks": nn.ModuleList(blocks), "merger": Number(unit), **self.stand_ins(tower)}
        output = type(tower).forward(shell_of(tower, **parts), pixels, grid_thw=grid, **options)
        order, hidden = output.pooler_output.squeeze(1), blocks[0].hidden
        kinds = tuple(str(id(block.inputs["cu_seqlens"])) for block in blocks)  # blocks that attend alike share them
        segments = _images_and_frames(grid.cpu(), unit, hidden.device)
        first = torch.arange(len(order), device=hidden.device) * unit  # patch of each group
        for kind, block in zip(kinds, blocks, strict=True):
            if kind not in segments:
                ends = block.inputs["cu_seqlens"][1:]
                segments[kind] = Segments.of(torch.bucketize(first, ends, right=True))
        cos, sin = blocks[0].inputs["position_embeddings"]
        stream = GroupStream(
            hidden=hidden.unflatten(0, (-1, unit)),
            places=order.argsort(),
            segments=segments,
            rotary=(cos.unflatten(0, (-1, unit)), sin.unflatten(0, (-1, unit))),
        )
        return Feed(stream, tuple(block.inputs for block in blocks), kinds, order, output)

    def attention(self, block: Module, hidden: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention output before the residual addition, [S, D], and what `qkv` projected on the way, [S, 3 * D]."""
        projection = Keep(block.attn.qkv)
        update = shell_of(block.attn, qkv=projection)(block.norm1(hidden), **inputs)
        return update, projection.output

    def sized_attention(
        self, block: Module, hidden: torch.Tensor, sizes: torch.Tensor, rows: list[int], rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`attention` in which each patch [S] counts as often as its size says; rows: patches in each segment."""
        projected = block.attn.qkv(block.norm1(hidden))
        queries, keys, values = self.heads(block, projected)
        queries, keys = self.rotate(queries, keys, *rotary)
        mixed = sized_attention(queries, keys, values, sizes, rows, block.attn.scaling)
        return block.attn.proj(mixed), projected

    def heads(self, block: Module, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values before rotary embedding, each [S, heads, d]."""
        return projected.unflatten(-1, (3, block.attn.num_heads, -1)).unbind(dim=1)

    def feed_forward(self, block: Module, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the block's MLP, residual included."""
        out: torch.Tensor = hidden + block.mlp(block.norm2(hidden))
        return out


def _images_and_frames(grid: torch.Tensor, unit: int, device: torch.device) -> dict[str, Segments]:
    """Which image and which frame each group belongs to; grid as in `feed`."""
    frames, groups = grid[:, 0], grid[:, 1:].prod(dim=1) // unit  # of each image, and of each of its frames
    image = torch.arange(len(grid)).repeat_interleave(frames * groups)
    frame = torch.arange(int(frames.sum())).repeat_interleave(groups.repeat_interleave(frames))
    return {"image": Segments.of(image.to(device)), "frame": Segments.of(frame.to(device))}


class Note(nn.Module):
    """A block that notes what it is given and hands it on."""

    hidden: torch.Tensor
    inputs: dict[str, Any]

    def forward(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        self.hidden, self.inputs = hidden, inputs
        return hidden


class Number(nn.Module):
    """A merger that gives each group its own number in place of a feature, [G, 1]."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(hidden) // self.unit, device=hidden.device)[:, None]


class Keep(nn.Module):
    """A module that keeps the latest output of another."""

    output: torch.Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.output = self.inner(hidden)
        return self.output
