"""SnapKV's score for halting: tokens that get little attention of the last tokens halt."""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.policies.attention_scores import received_attention
from deltahalt.policies.base import Policy
from deltahalt.policies.late_interaction import AROUND, late_interaction
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.options import require_at_least
from deltahalt.policies.query_tokens import check_window, last_tokens, query_count


@dataclass(frozen=True, kw_only=True)
class WindowAttention(Policy):
    """Keep the tokens that the query tokens, the last `window`, attend to most: SnapKV (pr.) of the DASH paper.

    Attributes:
        window: Number of last tokens that are the query tokens, from 1 to keep_last. In a scope without text, it is
            limited to the tokens after the last one that may halt.
        kernel: Width of the moving mean over scores, in tokens; odd. It keeps the neighbours of an attended token
            together with it. 1 leaves the scores as they are.
        heads: How the scores of all attention heads become one score: their "mean" or their maximum, "max".
        layers: Number of layers, l_s the last of them, whose scores are summed; 1 or more.
        ahead: Number of deeper layers in the look-ahead, 0 or more. The query tokens run through these layers first,
            over K and V of all states as they are at l_s, and their attention there is scored, too. Deeper heads know
            better what an answer needs. Each layer costs the K and V projections of all
            tokens.
        across: How the scores of l_s and of the layers ahead become one score: their "sum" or their maximum, "max".
        similar: Weight, 0 or more, of the score of late interaction (see `MaxSim`), which is added. Both scores are
            first scaled to sum to one over the eligible tokens. 0 leaves late interaction out.

    Raises:
        PolicyError: For an option out of range.

    Source:
        SnapKV (arXiv 2404.14469), as a pruning method in DASH (arXiv 2604.18103), App. C.1. `ahead`, `across` and
        `similar` are ours.

    Example:
        >>> policy = WindowAttention(start=11, pruning_ratio=0.5, heads="max")
        >>> format_policy(policy)
        'window-attention:start=11,pruning_ratio=0.5,heads=max'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "window-attention"
    summary: ClassVar[str] = "tokens most attended by the last window stay active (SnapKV pr.)"
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
        check_window(self)
        require_at_least(self, 1, "layers")
        if self.ahead < 0:
            raise PolicyError(f"ahead is {self.ahead}; it must be 0 or more, 0 for no look-ahead")
        if self.similar < 0:
            raise PolicyError(
                f"similar is {self.similar}; this weight of late interaction must be 0 or more (0 turns it off)"
            )

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
        window = query_count(self.window, self, view)
        scores = self._attended(view, window)
        for deeper in islice(view.lookahead(window), self.ahead):
            if deeper.sees_all:
                found = self._attended(deeper, window).to(scores.device)
                scores = scores + found if self.across == "sum" else torch.maximum(scores, found)
        if self.similar:
            among = self.may_halt(view)
            likeness = late_interaction(view, among, last_tokens(window, view), AROUND)
            scores = _share(scores, among) + self.similar * _share(likeness, among)
        return scores

    def _attended(self, view: LayerView, window: int) -> torch.Tensor:
        """Attention, after the moving mean, that each token receives in one layer: [n]."""
        received = received_attention(view, window)  # [heads, n]
        before = received[None, :, :-window]  # the query tokens never halt
        pooled = F.avg_pool1d(before, self.kernel, stride=1, padding=self.kernel // 2)[0]
        return F.pad(pooled.mean(dim=0) if self.heads == "mean" else pooled.amax(dim=0), (0, window))


def _share(scores: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Scores [n], scaled so that those of the tokens `among` [n] sum to one."""
    return scores / (scores * among).sum().clamp(min=torch.finfo(scores.dtype).tiny)
