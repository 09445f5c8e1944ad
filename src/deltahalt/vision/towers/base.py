"""The interface between the ViT loop and a host's ViT with pre-norm blocks; a subclass defines what differs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import shell_of
from deltahalt.vision.attention import sized_attention
from deltahalt.vision.groups import GroupStream


@dataclass(frozen=True)
class Feed:
    """What the host computes before its first block. `stream` enters that block.

    inputs: keyword arguments of each block. kinds: for each block, the name of the segments in `stream` that its
    attention keeps apart. taps: functions from groups to features in the middle of the tower, by the number of blocks
    before them. output: the host's output, still to be filled, or None if `Tower.output` creates it.
    """

    stream: GroupStream
    inputs: tuple[dict[str, Any], ...]
    kinds: tuple[str, ...]
    taps: Mapping[int, Callable[[GroupStream], GroupStream]]
    output: Any


class Tower:
    """The ViT of a vision-language model, whose configuration is `config`.

    A subclass in its own file lists the `model_types` that have this ViT (as in `config.model_type`) and overrides
    what differs. `tower` is the host's module, and `block` is one of its blocks.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    home: ClassVar[str]  # attribute of the host's base model that holds the tower
    flags: ClassVar[tuple[str, ...]]  # options of the host that raise UnsupportedError
    attn_name: ClassVar[str]  # attribute of a block that holds its attention
    norm_names: ClassVar[tuple[str, str]]  # attributes of a block: the norms before attention and MLP
    projections: ClassVar[tuple[str, ...]]  # attributes of the attention: q, k and v projections, or one for all
    out_name: ClassVar[str]  # attribute of the attention: its output projection

    lead: int = 0  # number of class tokens before an image's patches

    def __init__(self, config: Any) -> None:
        self.config = config

    def unsupported(self) -> str | None:
        """Return why groups cannot be halted in this model's tower, or None if they can."""
        return None

    # Methods that differ between kinds of towers

    def blocks(self, tower: Module) -> Sequence[Module]:
        """Return the blocks that the loop runs, in order."""
        raise NotImplementedError

    def unit(self, tower: Module) -> int:
        """Return the number of patches in a group."""
        raise NotImplementedError

    def patch_embedding(self, tower: Module) -> Module:
        """Return the convolution that turns pixels into the states of patches."""
        raise NotImplementedError

    def merger(self, tower: Module) -> Module:
        """Return the module that runs after the last block."""
        raise NotImplementedError

    def mergers(self, tower: Module) -> Mapping[int, Module]:
        """Return the mergers in the middle of the tower, by the number of blocks before them."""
        return {}

    def scaling(self, block: Module) -> float:
        """Return the factor on the product of a query and a key."""
        raise NotImplementedError

    def rotate(
        self, queries: torch.Tensor, keys: torch.Tensor, *rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries and keys [S, heads, d] after rotary embedding; unchanged in a tower without one."""
        raise NotImplementedError

    def feed(self, tower: Module, *args: Any, **options: Any) -> Feed:
        """Run the tower's forward up to its first block; return that block's states and all blocks' inputs."""
        raise NotImplementedError

    def block_inputs(self, feed: Feed, index: int, stream: GroupStream) -> dict[str, Any]:
        """Return the keyword arguments of block `index` when it runs on `stream`."""
        raise NotImplementedError

    def features(self, tower: Module, last: GroupStream, taps: Sequence[GroupStream]) -> GroupStream:
        """Return the tower's features of the groups that are active after the last block."""
        raise NotImplementedError

    def output(self, feed: Feed, last: GroupStream, final: GroupStream, taps: Sequence[GroupStream]) -> Any:
        """Return the tower's output, with an entry for every original group.

        final: the features of the groups that the policy kept; the entries of the others are filled.
        """
        raise NotImplementedError

    # Methods that all kinds share

    def attn(self, block: Module) -> Module:
        """Return the block's attention."""
        return getattr(block, self.attn_name)

    def norm(self, block: Module) -> Module:
        """Return the norm before the block's attention."""
        return getattr(block, self.norm_names[0])

    def attention(self, block: Module, hidden: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention output before the residual addition, and its queries, keys and values, [..., 3 * D]."""
        parts = {name: Keep(getattr(self.attn(block), name)) for name in self.projections}
        update = shell_of(self.attn(block), **parts)(self.norm(block)(hidden), **inputs)
        update = update[0] if isinstance(update, tuple) else update
        return update, torch.cat([part.output for part in parts.values()], dim=-1)

    def sized_attention(
        self, block: Module, hidden: torch.Tensor, sizes: torch.Tensor, lengths: Sequence[int], **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `attention` in which each key counts `sizes` [S] times. lengths: number of rows in each segment."""
        attn, normed = self.attn(block), self.norm(block)(hidden).flatten(0, -2)
        projected = torch.cat([getattr(attn, name)(normed) for name in self.projections], dim=-1)
        queries, keys, values = self.heads(block, projected)
        queries, keys = self.rotate(queries, keys, *inputs.get("position_embeddings", ()))
        mixed = sized_attention(queries, keys, values, sizes, list(lengths), self.scaling(block))
        return getattr(attn, self.out_name)(mixed).view_as(hidden), projected

    def heads(self, block: Module, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values before rotary embedding, each [S, heads, d]."""
        return projected.unflatten(-1, (3, self.attn(block).num_heads, -1)).unbind(dim=1)

    def feed_forward(self, block: Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after the block's MLP, residual included."""
        out: torch.Tensor = hidden + block.mlp(getattr(block, self.norm_names[1])(hidden))
        return out


class Note(nn.Module):
    """A block that stores its input and returns it unchanged."""

    hidden: torch.Tensor
    inputs: dict[str, Any]

    def forward(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        self.hidden, self.inputs = hidden, inputs
        return hidden


class Keep(nn.Module):
    """A wrapper that stores the latest output of a module."""

    output: torch.Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.output = self.inner(hidden)
        return self.output
