"""DART: visual tokens that are similar to a few pivot tokens halt, since they repeat what the pivots hold."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import Policy, Scope
from deltahalt.policies.layer_view import LayerView

PIVOTS = 4  # number of visual pivots, and of text pivots


@dataclass(frozen=True, kw_only=True)
class Dart(Policy):
    """Keep a few visual pivot tokens, and for each pivot the visual tokens least similar to it.

    Pivots are the 4 visual tokens and the 4 text tokens with the largest L1 norm of their keys at l_s. Visual pivots
    stay active. Then each pivot in turn, visual ones first, takes an equal share of the remaining count: the visual
    tokens whose states after l_s, with the norm applied that comes before the logits, have the lowest cosine similarity
    to its own. Two details differ from the authors' code: the count is exact, where theirs rounds down to 4 + 8 k; and
    ties go to the earlier token, where theirs depend on the order of a set.

    Attributes:
        start: Start layer: an index (int), or a fraction of the layers (float). The default is the second layer.
        pruning_ratio: Share of the visual tokens that halts, in [0, 1]; 0.778 leaves 128 of 576.
        scope: Eligible tokens: "visual", "image" or "video".

    Raises:
        PolicyError: For an option out of range, a scope with text, the boundary "attention", or a chunk above 1.

    Source:
        DART (arXiv 2502.11494), with K = 2.

    Example:
        >>> import torch
        >>> from deltahalt.kinds import IMAGE, TEXT
        >>> kinds = torch.tensor([TEXT] * 64 + [IMAGE] * 576 + [TEXT] * 32)
        >>> policy = Dart(start=2)
        >>> format_policy(policy)
        'dart:start=2'
        >>> policy.kept(len(kinds), kinds)
        128
    """

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "visual tokens least similar to a few pivots stay active"
    source: ClassVar[str] = "DART (arXiv 2502.11494), K = 2"
    scores_by_count: ClassVar[bool] = True

    start: float | int = 1
    pruning_ratio: float = 0.778
    scope: Scope = "visual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if TEXT in SCOPES[self.scope]:
            raise PolicyError(
                f'dart chooses among visual tokens, but scope="{self.scope}" has text: use scope="visual", "image" '
                'or "video"'
            )
        if self.boundary != "block" or self.chunk != 1:
            raise PolicyError('dart compares single tokens after the whole layer: use boundary="block" and chunk=1')

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys", "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        """A token that is taken earlier scores higher; a token that is not taken scores 0."""
        assert view.hidden_out is not None  # __post_init__ allows no other boundary
        assert view.visual is not None  # a prompt without images is not scored
        eligible, count = self.eligible_and_count(view)
        states = F.normalize(view.final_norm(view.hidden_out).float().to(eligible.device), dim=-1)  # [n, D]
        sizes = view.keys().float().abs().sum(dim=(0, 2)).to(eligible.device)  # [n]
        own, others = (_largest(sizes, among, PIVOTS) for among in (eligible, ~view.visual))
        taken, left = own, eligible.index_fill(0, own, False)
        share = -(-max(count - len(own), 0) // max(len(own) + len(others), 1))
        for pivot in torch.cat([own, others]):
            pool = left.nonzero().squeeze(1)
            unlike = pool[torch.argsort(states[pool] @ states[pivot], stable=True)[:share]]
            taken, left = torch.cat([taken, unlike]), left.index_fill(0, unlike, False)
        rank = torch.arange(len(taken), 0, -1, dtype=sizes.dtype, device=sizes.device)
        return torch.zeros_like(sizes).index_copy(0, taken, rank)


def _largest(sizes: torch.Tensor, among: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` largest of `sizes` [n] where `among` [n] is true, the largest first."""
    pool = among.nonzero().squeeze(1)
    return pool[torch.argsort(sizes[pool], descending=True, stable=True)[:count]]
