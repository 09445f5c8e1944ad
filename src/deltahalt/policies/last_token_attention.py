"""FastV on text: what the last token attends to."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.attention_scores import received_attention
from deltahalt.policies.base import LayerView, Policy


@dataclass(frozen=True, kw_only=True)
class LastTokenAttention(Policy):
    """Keep the tokens that the last prompt token attends to most at layer l_s, averaged over heads.

    FastV reads one row of the attention matrix, so q of one token is enough and the result is exact.
    """

    name: ClassVar[str] = "last-token-attention"
    summary: ClassVar[str] = "most attended by the last token stays active (FastV)"
    source: ClassVar[str] = "FastV (arXiv 2403.06764), adapted to text as in DASH, App. C.1"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"queries", "keys"})

    def score(self, view: LayerView) -> torch.Tensor:
        return received_attention(view, 1).mean(dim=0)
