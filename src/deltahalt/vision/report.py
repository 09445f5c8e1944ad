"""What the latest pack of images did in the ViT."""

from dataclasses import dataclass

import torch

from deltahalt.engine.report import in_short
from deltahalt.vision.flops import BlockLoad, TowerShape, tower_flops


@dataclass(frozen=True)
class VisionReport:
    """One pack of images or videos.

    groups: visual tokens that each would have without halting. kept: for each, the ascending raster places [k] of those
    that it has. loads: what each block computed, for the whole pack; full_loads: the same had nothing been halted.
    left: groups behind the last block, before those go that a policy drops behind the ViT.
    """

    shape: TowerShape
    groups: tuple[int, ...]
    kept: tuple[torch.Tensor, ...]
    loads: tuple[BlockLoad, ...]
    full_loads: tuple[BlockLoad, ...]
    left: int

    def __repr__(self) -> str:
        kept = [len(places) for places in self.kept]
        return f"VisionReport(images of {in_short(self.groups)} visual tokens, {in_short(kept)} kept)"

    @property
    def flops(self) -> int:
        """FLOPs of the ViT on the pack: patch embedding, blocks, and the merger of a Qwen ViT (`tower_flops`).

        Without the projector that other models have behind it, which halting leaves as it is.
        """
        return tower_flops(self.shape, self.loads, self.left)

    @property
    def full_flops(self) -> int:
        """FLOPs of the full ViT on the same pack."""
        return tower_flops(self.shape, self.full_loads, sum(self.groups))

    @property
    def speedup_bound(self) -> float:
        """What halting can gain in the ViT at most: the ratio of FLOPs."""
        return self.full_flops / self.flops
