"""FastV: visual tokens that get little attention of the last token in a shallow layer halt."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.base import Scope
from deltahalt.policies.last_token_attention import LastTokenAttention


@dataclass(frozen=True, kw_only=True)
class FastV(LastTokenAttention):
    """Keep the visual tokens that the last prompt token attends to most, averaged over heads.

    It is `LastTokenAttention` with FastV's settings, K = 2 and R = 50 %: two layers run on all visual tokens.

    Attributes:
        start: Start layer: an index (int), or a fraction of the layers (float). The default is the second layer.
        pruning_ratio: Share of the visual tokens that halts, in [0, 1].
        scope: Eligible tokens: "visual", "image", "video", "text" or "all".

    Raises:
        PolicyError: For an option out of range.

    Source:
        FastV (arXiv 2403.06764), with K = 2 and R = 50 %.

    Example:
        >>> import torch
        >>> from deltahalt.kinds import IMAGE, TEXT
        >>> kinds = torch.tensor([TEXT] * 64 + [IMAGE] * 576 + [TEXT] * 32)
        >>> policy = FastV(start=2)
        >>> format_policy(policy)
        'fastv:start=2'
        >>> policy.kept(len(kinds), kinds)
        288
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "visual tokens most attended by the last token stay active"
    source: ClassVar[str] = "FastV (arXiv 2403.06764), K = 2"

    start: float | int = 1
    pruning_ratio: float = 0.5
    scope: Scope = "visual"
