"""FastV, on visual tokens: what the last token attends to early on."""

from dataclasses import dataclass
from typing import ClassVar

from deltahalt.policies.base import Scope
from deltahalt.policies.last_token_attention import LastTokenAttention


@dataclass(frozen=True, kw_only=True)
class FastV(LastTokenAttention):
    """Last-token attention with FastV's settings: K = 2, so two layers run on all visual tokens, and R = 50 %."""

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "visual tokens most attended by the last token stay active"
    source: ClassVar[str] = "FastV (arXiv 2403.06764), K = 2"

    start: float | int = 1
    pruning_ratio: float = 0.5
    scope: Scope = "visual"
