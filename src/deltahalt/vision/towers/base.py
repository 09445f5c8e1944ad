"""What the loop asks of a ViT with pre-norm blocks of attention and MLP; a kind of tower states what differs."""

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
    """What the host feeds to its blocks.

    inputs: keyword arguments of each block. kinds: the name of the segments in `stream` that each block keeps apart.
    taps: what becomes of the groups in mid-tower, by the number of blocks before it. output: the host's own, to be
    filled; None where the tower makes one.
    """

    stream: GroupStream
    inputs: tuple[dict[str, Any], ...]
    kinds: tuple[str, ...]
    taps: Mapping[int, Callable[[GroupStream], GroupStream]]
    output: Any


class Tower:
    """The ViT of a vision-language model, whose configuration is `config`.

    A subclass in a file of its own names the `model_types` of the models that have it (as in `config.model_type`) and
    overrides what differs. `tower` is the host's module, and `block` one of its blocks.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    home: ClassVar[str]  # name of the tower in the host's base model
    flags: ClassVar[tuple[str, ...]]  # outputs of the host that are refused
    attn_name: ClassVar[str]  # names of a block's parts
    norm_names: ClassVar[tuple[str, str]]
    projections: ClassVar[tuple[str, ...]]  # names in the attention: into queries, keys and values, and out of heads
    out_name: ClassVar[str]

    lead: int = 0  # class tokens before an image's patches

    def __init__(self, config: Any) -> None:
        self.config = config

    def unsupported(self) -> str | None:
        """Why groups cannot be halted in this model's tower, or None."""
        return None

    # What differs between kinds of towers

    def blocks(self, tower: Module) -> Sequence[Module]:
        """The blocks that the loop runs."""
        raise NotImplementedError

    def unit(self, tower: Module) -> int:
        """Patches in a group."""
        raise NotImplementedError

    def patch_embedding(self, tower: Module) -> Module:
        """The convolution that makes states of pixels."""
        raise NotImplementedError

    def merger(self, tower: Module) -> Module:
        """What runs behind the last block."""
        raise NotImplementedError

    def mergers(self, tower: Module) -> Mapping[int, Module]:
        """Mergers of states in mid-tower, by the number of blocks before them."""
        return {}

    def scaling(self, block: Module) -> float:
        """Factor on q.k."""
        raise NotImplementedError

    def rotate(
        self, queries: torch.Tensor, keys: torch.Tensor, *rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [S, heads, d] after rotary embedding, if there is one."""
        raise NotImplementedError

    def feed(self, tower: Module, *args: Any, **options: Any) -> Feed:
        """What the host makes of the arguments of the tower's forward, before its first block."""
        raise NotImplementedError

    def block_inputs(self, feed: Feed, index: int, stream: GroupStream) -> dict[str, Any]:
        """Keyword arguments for block number `index`, which runs on `stream`."""
        raise NotImplementedError

    def features(self, tower: Module, last: GroupStream, taps: Sequence[GroupStream]) -> GroupStream:
        """What the tower gives of groups that are left behind the last block."""
        raise NotImplementedError

    def output(self, feed: Feed, last: GroupStream, final: GroupStream, taps: Sequence[GroupStream]) -> Any:
        """The output of the tower's forward, in full length. final: what is left of `features`."""
        raise NotImplementedError

    # What all have in common

    def attn(self, block: Module) -> Module:
        """The block's attention."""
        return getattr(block, self.attn_name)

    def norm(self, block: Module) -> Module:
        """The norm before the block's attention."""
        return getattr(block, self.norm_names[0])

    def attention(self, block: Module, hidden: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention output before the residual addition, and queries, keys and values on the way, [..., 3 * D]."""
        parts = {name: Keep(getattr(self.attn(block), name)) for name in self.projections}
        update = shell_of(self.attn(block), **parts)(self.norm(block)(hidden), **inputs)
        update = update[0] if isinstance(update, tuple) else update
        return update, torch.cat([part.output for part in parts.values()], dim=-1)

    def sized_attention(
        self, block: Module, hidden: torch.Tensor, sizes: torch.Tensor, lengths: Sequence[int], **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`attention` in which each row [S] counts as often as its size says; lengths: rows in each segment."""
        attn, normed = self.attn(block), self.norm(block)(hidden).flatten(0, -2)
        projected = torch.cat([getattr(attn, name)(normed) for name in self.projections], dim=-1)
        queries, keys, values = self.heads(block, projected)
        queries, keys = self.rotate(queries, keys, *inputs.get("position_embeddings", ()))
        mixed = sized_attention(queries, keys, values, sizes, list(lengths), self.scaling(block))
        return getattr(attn, self.out_name)(mixed).view_as(hidden), projected

    def heads(self, block: Module, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values before rotary embedding, each [S, heads, d]."""
        return projected.unflatten(-1, (3, self.attn(block).num_heads, -1)).unbind(dim=1)

    def feed_forward(self, block: Module, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the block's MLP, residual included."""
        out: torch.Tensor = hidden + block.mlp(getattr(block, self.norm_names[1])(hidden))
        return out


class Note(nn.Module):
    """A block that notes what it is given and hands it on."""

    hidden: torch.Tensor
    inputs: dict[str, Any]

    def forward(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        self.hidden, self.inputs = hidden, inputs
        return hidden


class Keep(nn.Module):
    """A module that keeps the latest output of another."""

    output: torch.Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.output = self.inner(hidden)
        return self.output
