"""V2Drop: visual tokens that a layer changes least halt, in three stages."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.base import Scope
from deltahalt.policies.cascade import Cascade
from deltahalt.policies.dash_layer import DashLayer


@dataclass(frozen=True, kw_only=True)
class V2Drop(Cascade):
    """Keep the visual tokens that a layer changes most, in three stages of `DashLayer`.

    The defaults are the published settings for Qwen2-VL: of the visual tokens, a quarter runs from layer 3 of 28 on, a
    twentieth of these from layer 16 on, and almost none from layer 22 on.

    Attributes:
        start: Layer of the first stage: an index (int), or a fraction of the layers (float).
        pruning_ratio: Share of the visual tokens that halts in the first stage, in [0, 1].
        scope: Eligible tokens: "visual", "image", "video", "text" or "all".

    Raises:
        PolicyError: For an option out of range, the boundary "attention", or a ratio lower than that of an earlier
            stage.

    Source:
        V2Drop (arXiv 2509.01552), with its settings for Qwen2-VL.

    Example:
        >>> import torch
        >>> from deltahalt.kinds import IMAGE, TEXT
        >>> kinds = torch.tensor([TEXT] * 64 + [IMAGE] * 576 + [TEXT] * 32)
        >>> policy = V2Drop(start=2)
        >>> format_policy(policy)
        'v2drop:start=2'
        >>> [stage.kept(len(kinds), kinds) for stage in policy.stages]
        [144, 7, 1]
    """

    name: ClassVar[str] = "v2drop"
    summary: ClassVar[str] = "visual tokens with the largest whole-layer update stay active, in three stages"
    source: ClassVar[str] = "V2Drop (arXiv 2509.01552), with its settings for Qwen2-VL"
    rule = DashLayer

    start: float | int = 0.08
    pruning_ratio: float = 0.75
    second_start: float | int = 0.54
    second_ratio: float = 0.9875
    third_start: float | int = 0.75
    third_ratio: float = 0.999
    scope: Scope = "visual"
