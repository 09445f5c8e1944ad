"""What `vision-sweep` measures."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.lab.rows.base import Row


@dataclass(frozen=True)
class VisionRow(Row):
    """One combination on all pictures; answers are generated greedily.

    asked, right: questions of each kind, and those answered word for word. kept: share of visual tokens that is active
    in the decoder's last layer. vision_flops, flops: of the ViT and of the prefill, relative to the full model's.
    method, retain, vision_policy, policy: see `Combination`.
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
