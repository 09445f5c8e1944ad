"""Batched towers (CLIP and SigLIP), whose images all have one size; a subclass defines what differs."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from deltahalt.errors import UnsupportedError
from deltahalt.host.compat import bare_tower
from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import shell_of
from deltahalt.vision.groups import GroupStream, Segments
from deltahalt.vision.towers.base import Feed, Note, Tower


class BatchedTower(Tower):
    """A ViT that runs a batch of images [B, s, D] in layers of `layer_norm1`, `self_attn`, `layer_norm2` and `mlp`.

    Patches are in raster order, and the tower's output is their states. A group is a square of `side` x `side` patches,
    which the host's projector turns into one feature.
    """

    home = "vision_tower"
    flags = ("output_attentions",)
    attn_name = "self_attn"
    norm_names = ("layer_norm1", "layer_norm2")
    projections = ("q_proj", "k_proj", "v_proj")
    out_name = "out_proj"

    @property
    def side(self) -> int:
        """Number of patches along the side of a group."""
        raise NotImplementedError

    def blocks(self, tower: Module) -> Sequence[Module]:
        blocks: Sequence[Module] = bare_tower(tower).encoder.layers
        return blocks

    def unit(self, tower: Module) -> int:
        return self.side**2

    def patch_embedding(self, tower: Module) -> Module:
        return bare_tower(tower).embeddings.patch_embedding

    def merger(self, tower: Module) -> Module:
        return bare_tower(tower).post_layernorm

    def scaling(self, block: Module) -> float:
        return float(block.self_attn.scale)

    def rotate(
        self, queries: torch.Tensor, keys: torch.Tensor, *rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return queries, keys  # position embeddings are added to the states

    def feed(
        self,
        tower: Module,
        pixel_values: torch.Tensor,
        *,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **options: Any,
    ) -> Feed:
        """Run the host's own forward with blocks that only store their inputs.

        pixel_values: [B, channels, height, width]. output_hidden_states: the hidden states to return, by the number of
        blocks before them (negative: from the end); True for all. Raises UnsupportedError if patches are masked.
        """
        core = bare_tower(tower)
        blocks = [MaskedNote() for _ in core.encoder.layers]
        parts = {"encoder": shell_of(core.encoder, layers=nn.ModuleList(blocks)), "head": nn.Identity()}
        type(core).forward(shell_of(core, **parts), pixel_values, **options)
        if any(block.inputs["attention_mask"] is not None for block in blocks):
            raise UnsupportedError(
                "the ViT received an attention mask, which halting does not support: give images without padding, as "
                "the processor makes them, and load the model with sdpa, eager or FlashAttention"
            )
        images, length, _ = blocks[0].hidden.shape
        squares = _squares(length - self.lead, self.side).to(blocks[0].hidden.device)
        first = torch.arange(images, device=squares.device) * length + self.lead  # row of each image's first patch
        places = torch.arange(images * len(squares), device=squares.device)
        stream = GroupStream(
            hidden=blocks[0].hidden.flatten(0, 1),
            origin=torch.arange(images * length, device=squares.device),
            members=(first[:, None, None] + squares).flatten(0, 1),
            places=places,
            segments=dict.fromkeys(("image", "frame"), Segments.of(places // len(squares))),
            rotary=(),
            images=images,
        )
        if output_hidden_states is None:
            output_hidden_states = getattr(tower.config, "output_hidden_states", False)
        taps = dict.fromkeys(_wanted(output_hidden_states, len(blocks) + 1), _unchanged)
        return Feed(stream, tuple(block.inputs for block in blocks), ("image",) * len(blocks), taps, None)

    def block_inputs(self, feed: Feed, index: int, stream: GroupStream) -> dict[str, Any]:
        return feed.inputs[index]

    def features(self, tower: Module, last: GroupStream, taps: Sequence[GroupStream]) -> GroupStream:
        """Return the tower's output and the requested hidden states, concatenated in the last dimension."""
        own = self.merger(tower)(last.rows).flatten(0, 1)
        taken = [tap.hidden[torch.isin(tap.origin, last.origin).to(tap.hidden.device)] for tap in taps]
        return last.advance(torch.cat([own, *(states.to(own.device) for states in taken)], dim=-1))

    def output(self, feed: Feed, last: GroupStream, final: GroupStream, taps: Sequence[GroupStream]) -> Any:
        """Return states that are NaN for dropped groups. There is no pooled output."""
        full = final.spread(len(feed.stream.hidden), torch.nan).unflatten(0, (feed.stream.images, -1))
        own, *taken = full.split(feed.stream.hidden.shape[-1], dim=-1)
        states = dict(zip(feed.taps, taken, strict=True))
        wanted = tuple(states.get(number) for number in range(len(feed.inputs) + 1)) if states else None
        return BaseModelOutputWithPooling(last_hidden_state=own, hidden_states=wanted)  # type: ignore[arg-type]


class MaskedNote(Note):
    """A Note whose mask is a positional argument."""

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        return super().forward(hidden, attention_mask=attention_mask, **inputs)


def _unchanged(stream: GroupStream) -> GroupStream:
    return stream


def _wanted(layers: bool | int | Sequence[int], states: int) -> list[int]:
    """Return the indices, ascending, of the hidden states that `output_hidden_states` selects out of `states`."""
    if isinstance(layers, bool):
        return list(range(states)) if layers else []
    chosen = [layers] if isinstance(layers, int) else layers
    return sorted({layer % states for layer in chosen if -states <= layer < states})


def _squares(patches: int, side: int) -> torch.Tensor:
    """Return the patches of each square of `side` x `side` patches, in raster order: [squares, side**2].

    Raises UnsupportedError if an image cannot be divided into such squares.
    """
    numbers = torch.arange(patches)
    if side == 1:
        return numbers[:, None]
    columns = math.isqrt(patches)
    if columns**2 != patches or columns % side:
        raise UnsupportedError(f"an image of {patches} patches cannot be divided into squares of {side} x {side}")
    return numbers.view(columns // side, side, -1, side).transpose(1, 2).flatten(2).flatten(0, 1)
