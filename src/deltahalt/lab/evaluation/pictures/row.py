"""A row of `vision-sweep`: one method on all pictures."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.lab.rows.base import Row


@dataclass(frozen=True)
class VisionRow(Row):
    """One combination on all pictures; answers are generated greedily.

    method, retain, vision_policy, policy: see `Combination`. pictures: number of pictures. asked, right: number of
    questions of each kind, and of those answered word for word. kept: share of the visual tokens that are active in the
    decoder's last layer. vision_flops, flops: FLOPs of the ViT and of the prefill, as a share of the full model's.
    dtype, machine: the number format and the device of the model.
    """

    kind: ClassVar[str] = "vision"

    model: str
    method: str
    retain: float
    vision_policy: str | None
    policy: str | None
    pictures: int
    asked: dict[str, int]
    right: dict[str, int]
    kept: float
    vision_flops: float
    flops: float
    dtype: str
    machine: str
