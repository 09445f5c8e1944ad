"""V2Drop: visual tokens that a layer changes least halt, at three layers in a row."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.base import Scope
from deltahalt.policies.cascade import Cascade
from deltahalt.policies.dash_layer import DashLayer


@dataclass(frozen=True, kw_only=True)
class V2Drop(Cascade):
    """Keep the visual tokens with the largest whole-layer delta.

    The published settings for Qwen2-VL: before layers 3, 16 and 22 of 28, a quarter stays, then a twentieth of these,
    then next to none.
    """

    name: ClassVar[str] = "v2drop"
    summary: ClassVar[str] = "visual tokens with the largest whole-layer update stay active, in three stages"
    source: ClassVar[str] = "V2Drop (arXiv 2509.01552), its settings for Qwen2-VL"
    rule = DashLayer

    start: float | int = 0.08
    pruning_ratio: float = 0.75
    second_start: float | int = 0.54
    second_ratio: float = 0.9875
    third_start: float | int = 0.75
    third_ratio: float = 0.999
    scope: Scope = "visual"
