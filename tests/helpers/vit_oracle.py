"""The masking oracle for ViTs: all patches run through all blocks, and patches that halted are read by nobody.

It shares nothing with the engine or with the host's forward: patches stay in the order of the output, windows and
frames are read off their coordinates, and attention is a dense matrix under a mask.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

WINDOW = 2  # groups along a window, see tiny_vision.py

# Called behind the attention of a block ("attention") or behind the whole block, with its number.
Change = Callable[[str, int, "Patches"], "Patches"]


@dataclass(frozen=True)
class Patches:
    """Rows of patches in the order of the output: states [S, D], coordinates [S, 4] (image, frame, row, column) and,
    for each, how much it counts as a key (0 for halted ones). keys: [S, heads, d] of the latest block, not rotated."""

    states: torch.Tensor
    coordinates: torch.Tensor
    sizes: torch.Tensor
    keys: torch.Tensor

    def rows(self, index: torch.Tensor, states: torch.Tensor, sizes: torch.Tensor) -> "Patches":
        return replace(self, states=states, coordinates=self.coordinates[index], sizes=sizes, keys=self.keys[index])


def coordinates(grid: torch.Tensor, merge: int = 2) -> torch.Tensor:
    """Image, frame, row and column of each patch, [S, 4]: 2x2 squares in raster order, each of them in raster order."""
    places = []
    for image, (frames, rows, columns) in enumerate(grid.tolist()):
        for frame in range(frames):
            for top in range(0, rows, merge):
                for left in range(0, columns, merge):
                    square = [(top + down, left + right) for down in range(merge) for right in range(merge)]
                    places += [(image, frame, *place) for place in square]
    return torch.tensor(places)


def run(name: str, tower: Any, pixels: torch.Tensor, grid: torch.Tensor, change: Change) -> dict[str, Any]:
    """Features [G, D] of the tower and its deepstack features, with the coordinates of the rows that are left."""
    places = coordinates(grid)
    states = tower.patch_embed(pixels)
    if name == "qwen3_vl":
        states = states + position_embedding(tower, grid, places)
    patches = Patches(states, places, torch.ones(len(states)), torch.empty(len(states), 0))
    deep = {}
    for index, block in enumerate(tower.blocks):
        update, keys = attention(block, patches, visible(name, tower, index, patches.coordinates))
        patches = change("attention", index, replace(patches, states=patches.states + update, keys=keys))
        states = patches.states + block.mlp(block.norm2(patches.states))
        patches = change("block", index, replace(patches, states=states))
        if index in getattr(tower, "deepstack_visual_indexes", ()):
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(index)]
            deep[index] = merger(patches.states), patches.coordinates
    return {"features": tower.merger(patches.states), "patches": patches, "deep": deep}


def visible(name: str, tower: Any, index: int, places: torch.Tensor) -> torch.Tensor:
    """Which patch may read which in a block, [S, S]."""
    key = places[:, :2]
    if name == "qwen2_5_vl" and index not in tower.fullatt_block_indexes:
        key = torch.cat([key, places[:, 2:] // (2 * WINDOW)], dim=1)
    return (key[:, None] == key[None]).all(dim=-1)


def attention(block: Any, patches: Patches, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of a block's attention, [S, D], and its keys before rotary embedding, [S, heads, d]."""
    heads = block.attn.num_heads
    projected = block.attn.qkv(block.norm1(patches.states)).view(len(patches.states), 3, heads, -1)
    queries, keys, values = projected.unbind(1)
    asking, asked = rotated(queries, patches.coordinates), rotated(keys, patches.coordinates)
    logits = torch.einsum("qhd,khd->hqk", asking, asked) * asking.shape[-1] ** -0.5
    logits = logits + patches.sizes.log()
    halted = patches.sizes == 0
    allowed = seen & ~halted | torch.eye(len(seen), dtype=torch.bool)  # a halted patch reads itself: nobody looks
    weights = torch.where(halted & allowed, 0.0, logits).masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    mixed = torch.einsum("hqk,khd->qhd", weights, values)
    return block.attn.proj(mixed.flatten(1)), keys


def rotated(heads: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[S, heads, d] turned by the angles of row and column."""
    half = heads.shape[-1] // 2
    frequencies = 10000.0 ** -(torch.arange(0, half, 2) / half)
    angles = (places[:, 2:, None] * frequencies).flatten(1)  # [S, d / 2]
    first, second = heads.split(half, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def position_embedding(tower: Any, grid: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The learned square of positions, stretched over each image: [S, D]."""
    side = int(len(tower.pos_embed.weight) ** 0.5)
    square = tower.pos_embed.weight.view(1, side, side, -1).permute(0, 3, 1, 2)
    stretched = []
    for image, (_, rows, columns) in enumerate(grid.tolist()):
        table = F.interpolate(square, (rows, columns), mode="bilinear", align_corners=True)[0]
        own = places[places[:, 0] == image]
        stretched.append(table[:, own[:, 2], own[:, 3]].T)
    return torch.cat(stretched)
