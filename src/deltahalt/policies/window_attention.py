"""SnapKV turned into halting: what the last window of tokens attends to."""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.policies.asking import askers, check_asking
from deltahalt.policies.attention_scores import received_attention
from deltahalt.policies.base import LayerView, Policy
from deltahalt.policies.late_interaction import AROUND, late_interaction


@dataclass(frozen=True, kw_only=True)
class WindowAttention(Policy):
    """Keep the tokens that the last `window` tokens attend to most: SnapKV (pr.) of the DASH paper.

    window: number of last tokens whose attention is added up; in a scope without text, no more than the tokens after
        the last that may halt, since these tokens are kept.
    kernel: odd width of the mean that lets neighbours of an attended token survive with it; 1 for none.
    heads: how scores of attention heads become one: their mean or their maximum.
    layers: sum the scores of so many layers, ending at l_s.
    ahead: let the window run on through so many deeper layers, over K and V of all states as they are at l_s, and take
        the scores there in. Deeper heads know better what an answer needs; asking them costs two projections a layer.
    across: whether a token's score is the sum or the maximum of those that l_s and the layers ahead give it.
    similar: weight of late interaction (see MaxSim) beside attention, each scaled to sum to one over what may halt.
    """

    name: ClassVar[str] = "window-attention"
    summary: ClassVar[str] = "most attended by the last window stays active (SnapKV pr.)"
    source: ClassVar[str] = "SnapKV (arXiv 2404.14469), as a pruning method in DASH, App. C.1"

    window: int = 32
    kernel: int = 5
    heads: Literal["mean", "max"] = "mean"
    layers: int = 1
    ahead: int = 0
    across: Literal["sum", "max"] = "sum"
    similar: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_asking(self.window, self.kernel, self)
        if self.layers < 1 or self.ahead < 0:
            raise PolicyError(f"layers is {self.layers} and ahead {self.ahead}: give 1 or more, and 0 or more")
        if self.similar < 0:
            raise PolicyError(f"similar is {self.similar}; it must be 0 or more")

    @property
    def scored_layers(self) -> int:
        return self.layers

    @property
    def layers_ahead(self) -> int:
        return self.ahead

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"queries", "keys", "lookahead"} | ({"hidden_in", "hidden_out"} if self.similar else set()))

    def score(self, view: LayerView) -> torch.Tensor:
        window = askers(self.window, self, view)
        scores = self._attended(view, window)
        for deeper in islice(view.lookahead(window), self.ahead):
            if deeper.sees_all:
                found = self._attended(deeper, window).to(scores.device)
                scores = scores + found if self.across == "sum" else torch.maximum(scores, found)
        if self.similar:
            among = self.eligible_and_count(view)[0]
            likeness = late_interaction(view, among, window, AROUND)
            scores = _share(scores, among) + self.similar * _share(likeness, among)
        return scores

    def _attended(self, view: LayerView, window: int) -> torch.Tensor:
        """Pooled attention that each token receives at one layer, [n]."""
        received = received_attention(view, window)  # [heads, n]
        before = received[None, :, :-window]  # the window itself is kept in any case
        pooled = F.avg_pool1d(before, self.kernel, stride=1, padding=self.kernel // 2)[0]
        return F.pad(pooled.mean(dim=0) if self.heads == "mean" else pooled.amax(dim=0), (0, window))


def _share(scores: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Scores [n] as shares of what the tokens `among` [n] have together."""
    return scores / (scores * among).sum().clamp(min=torch.finfo(scores.dtype).tiny)
