"""FLOPs of a ViT's pass over a pack of images: its matrix products, a multiplication and an addition counted as 2."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.vision.towers.base import Tower


@dataclass(frozen=True)
class BlockLoad:
    """What one block computes.

    Attributes:
        segments: Number of groups in each segment; attention stays inside a segment.
        mlp_groups: Number of groups that pass through the MLP.
    """

    segments: tuple[int, ...]
    mlp_groups: int

    @property
    def attended(self) -> int:
        """Number of groups that pass through attention."""
        return sum(self.segments)


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a ViT and the FLOPs of its linear layers.

    Attributes:
        unit: Number of patches in a group.
        lead: Number of class tokens of an image, 0 or 1.
        width: Size D of the hidden states.
        embed: FLOPs of the patch embedding, per patch.
        attention: FLOPs of a block's linear layers in attention, per patch.
        mlp: FLOPs of a block's MLP, per patch.
        merger: FLOPs of the merger, per group.
        taps: For each merger in the middle of the tower, the number of blocks before it.
    """

    unit: int
    lead: int
    width: int
    embed: int
    attention: int
    mlp: int
    merger: int
    taps: tuple[int, ...]

    @classmethod
    def of(cls, tower: Module, family: Tower) -> "TowerShape":
        """Return the shape of a host's ViT, whose blocks all have the same sizes."""
        block = family.blocks(tower)[0]
        return cls(
            unit=family.unit(tower),
            lead=family.lead,
            width=family.norm(block).weight.numel(),
            embed=2 * family.patch_embedding(tower).weight.numel(),
            attention=_linear_flops(family.attn(block)),
            mlp=_linear_flops(block.mlp),
            merger=_linear_flops(family.merger(tower)),
            taps=tuple(family.mergers(tower)),
        )


def _linear_flops(module: nn.Module) -> int:
    return sum(2 * part.in_features * part.out_features for part in module.modules() if isinstance(part, nn.Linear))


def tower_flops(shape: TowerShape, loads: Sequence[BlockLoad], left: int) -> int:
    """Return the FLOPs of one pass. loads: what each block computes. left: number of groups after the last block."""
    total = shape.unit * loads[0].attended * shape.embed + left * shape.merger
    for load in loads:
        leads = shape.lead * len(load.segments)
        total += (shape.unit * load.attended + leads) * shape.attention
        total += (shape.unit * load.mlp_groups + leads) * shape.mlp
        total += 4 * shape.width * sum((shape.unit * groups + shape.lead) ** 2 for groups in load.segments)
    entering = [*(load.attended for load in loads), left]
    return total + shape.merger * sum(entering[number] for number in shape.taps)
