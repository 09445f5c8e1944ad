"""DASH: the tokens whose states attention changes least halt."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.norms import norms


@dataclass(frozen=True, kw_only=True)
class Dash(Policy):
    """Keep the tokens with the largest attention update at the start layer, the norm ||U_t||_2.

    U_t is the output of the attention module for token t, before it is added to the token's state H_t.

    Attributes:
        relative: Divide the norm of the update by the norm of the state that it is added to, ||U_t||_2 / ||H_t||_2.

    Raises:
        PolicyError: For an option out of range.

    Source:
        DASH (arXiv 2604.18103), Eq. 1-3; `relative` is what its Fig. 1 shows.

    Example:
        >>> policy = Dash(start=11, pruning_ratio=0.5)
        >>> format_policy(policy)
        'dash:start=11,pruning_ratio=0.5'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "dash"
    summary: ClassVar[str] = "tokens with the largest attention update stay active"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), Eq. 1-3 and App. A"
    pointwise: ClassVar[bool] = True

    relative: bool = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"update", "hidden_in"} if self.relative else {"update"})

    def score(self, view: LayerView) -> torch.Tensor:
        delta = norms(view.update)
        return delta / norms(view.hidden_in) if self.relative else delta
