"""The report on one pack of images in a halted ViT."""

from dataclasses import dataclass

import torch

from deltahalt.engine.report import in_short
from deltahalt.vision.flops import BlockLoad, TowerShape, tower_flops


@dataclass(frozen=True)
class VisionReport:
    """What a ViT-stage policy did in one pack of images or videos.

    Attributes:
        shape: Sizes of the ViT and FLOPs of its layers.
        groups: For each image, its number of visual tokens without halting.
        kept: For each image, the raster positions [k] of its kept visual tokens, ascending.
        loads: What each block computed for the whole pack.
        full_loads: What each block computes for the same pack without halting.
        left: Number of groups after the last block. A policy that acts after the tower keeps fewer (see `kept`).

    Example:
        >>> with halting(model, "dense", vision="vision-dash:retain=0.5") as halted:  # doctest: +SKIP
        ...     model.generate(**inputs)  # with one image of 256 visual tokens
        >>> len(halted.vision_report.kept[0])  # doctest: +SKIP
        128
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

        The projector that other models run after the ViT is not counted, since halting does not change its cost.
        """
        return tower_flops(self.shape, self.loads, self.left)

    @property
    def full_flops(self) -> int:
        """FLOPs of the ViT without halting on the same pack."""
        return tower_flops(self.shape, self.full_loads, sum(self.groups))

    @property
    def speedup_bound(self) -> float:
        """Upper bound on the ViT's speedup: `full_flops` / `flops`."""
        return self.full_flops / self.flops
