"""DART: visual tokens that resemble a few pivots least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.base import LayerView, Policy, Scope

PIVOTS = 4  # of the visual tokens, and of the text tokens


@dataclass(frozen=True, kw_only=True)
class Dart(Policy):
    """Keep pivots, the visual tokens with the largest keys, and for each pivot those that are least like it.

    Pivots are the `PIVOTS` visual tokens, and as many text tokens, with the largest L1 norm of their keys at l_s. Each
    in turn, visual ones first, takes an equal share of the count from the visual tokens left: those whose states after
    l_s, normed as before the logits, have the lowest cosine similarity to its own. Takes as many as the ratio says,
    where the original rounds down to 4 + 8 k; ties go to the earlier token, where the original iterates over a set.
    """

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "visual tokens least like a few pivots stay active"
    source: ClassVar[str] = "DART (arXiv 2502.11494), K = 2"
    scores_by_count: ClassVar[bool] = True

    start: float | int = 1
    pruning_ratio: float = 0.778
    scope: Scope = "visual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if TEXT in SCOPES[self.scope]:
            raise PolicyError(f'dart chooses among visual tokens, not in scope="{self.scope}": use scope="visual"')
        if self.boundary != "block" or self.chunk != 1:
            raise PolicyError('dart compares single tokens after the whole block: use boundary="block" and chunk=1')

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys", "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        """The earlier a token is taken, the higher; 0 for all that are not."""
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
    """Index of the `count` largest of `sizes` [n] where `among` [n] is true, the largest first."""
    pool = among.nonzero().squeeze(1)
    return pool[torch.argsort(sizes[pool], descending=True, stable=True)[:count]]
