"""FastV on text: tokens that get little attention of the last token halt."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.attention_scores import received_attention
from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView


@dataclass(frozen=True, kw_only=True)
class LastTokenAttention(Policy):
    """Keep the tokens that the last prompt token attends to most in the start layer, averaged over heads.

    FastV uses only the last row of the attention matrix, so the query of one token gives its exact scores. The options
    are those of `Policy`.

    Raises:
        PolicyError: For an option out of range.

    Source:
        FastV (arXiv 2403.06764), adapted to text as in DASH (arXiv 2604.18103), App. C.1.

    Example:
        >>> policy = LastTokenAttention(start=11, pruning_ratio=0.5)
        >>> format_policy(policy)
        'last-token-attention:start=11,pruning_ratio=0.5'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "last-token-attention"
    summary: ClassVar[str] = "tokens most attended by the last token stay active (FastV)"
    source: ClassVar[str] = "FastV (arXiv 2403.06764), adapted to text as in DASH, App. C.1"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"queries", "keys"})

    def score(self, view: LayerView) -> torch.Tensor:
        return received_attention(view, 1).mean(dim=0)
