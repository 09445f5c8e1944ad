"""What a ViT's pass over a pack of images costs: the count of what the matrix units really do."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deltahalt.families.base import Module
from deltahalt.vision.towers.base import PackedTower


@dataclass(frozen=True)
class BlockLoad:
    """What one block computes. segments: groups in each run that attends only to itself. fed: groups in the MLP."""

    segments: tuple[int, ...]
    fed: int

    @property
    def attended(self) -> int:
        """Groups that go through attention."""
        return sum(self.segments)


@dataclass(frozen=True)
class TowerShape:
    """FLOPs of a ViT's linear layers. embed, attention, mlp: for a patch; merger: for a group.

    unit: patches in a group. width: of the hidden states. taps: blocks with a merger of their own behind them.
    """

    unit: int
    width: int
    embed: int
    attention: int
    mlp: int
    merger: int
    taps: tuple[int, ...]

    @classmethod
    def of(cls, tower: Module, family: PackedTower) -> "TowerShape":
        """The shape of a host's ViT, whose blocks are all alike."""
        block = tower.blocks[0]
        return cls(
            unit=tower.spatial_merge_size**2,
            width=block.attn.dim,
            embed=2 * tower.patch_embed.proj.weight.numel(),
            attention=_linear_flops(block.attn),
            mlp=_linear_flops(block.mlp),
            merger=_linear_flops(tower.merger),
            taps=tuple(family.taps(tower)),
        )


def _linear_flops(module: nn.Module) -> int:
    return sum(2 * part.in_features * part.out_features for part in module.modules() if isinstance(part, nn.Linear))


def tower_flops(shape: TowerShape, loads: Sequence[BlockLoad], left: int) -> int:
    """FLOPs of one pass with these loads; left: groups behind the last block."""
    total = shape.unit * loads[0].attended * shape.embed + left * shape.merger
    for index, load in enumerate(loads):
        pairs = sum((shape.unit * groups) ** 2 for groups in load.segments)
        total += shape.unit * (load.attended * shape.attention + load.fed * shape.mlp) + 4 * shape.width * pairs
        if index in shape.taps:
            total += shape.merger * (loads[index + 1].attended if index + 1 < len(loads) else left)
    return total
