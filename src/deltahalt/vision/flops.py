"""What a ViT's pass over a pack of images costs: the count of what the matrix units really do."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.vision.towers.base import Tower


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

    unit: patches in a group. lead: class tokens of an image. width: of the hidden states. taps: numbers of blocks with
    a merger of their own behind them.
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
        """The shape of a host's ViT, whose blocks are all alike."""
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
    """FLOPs of one pass with these loads; left: groups behind the last block."""
    total = shape.unit * loads[0].attended * shape.embed + left * shape.merger
    for load in loads:
        leads = shape.lead * len(load.segments)
        total += (shape.unit * load.attended + leads) * shape.attention + (shape.unit * load.fed + leads) * shape.mlp
        total += 4 * shape.width * sum((shape.unit * groups + shape.lead) ** 2 for groups in load.segments)
    entering = [*(load.attended for load in loads), left]
    return total + shape.merger * sum(entering[number] for number in shape.taps)
