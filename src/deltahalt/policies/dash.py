"""DASH: halt the tokens that attention updates least."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.policies.base import LayerView, Policy


@dataclass(frozen=True, kw_only=True)
class Dash(Policy):
    """Keep the tokens with the largest attention-branch delta, ||U_t||_2 at layer l_s (DASH, Eq. 2-3).

    relative: divide it by the length of what it is added to, ||H_t||_2, as in the paper's Fig. 1.
    """

    name: ClassVar[str] = "dash"
    summary: ClassVar[str] = "largest attention update stays active"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), Eq. 1-3 and App. A"
    pointwise: ClassVar[bool] = True

    relative: bool = False

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"update", "hidden_in"} if self.relative else {"update"})

    def score(self, view: LayerView) -> torch.Tensor:
        delta: torch.Tensor = torch.linalg.vector_norm(view.update, dim=-1, dtype=torch.float32)
        return delta / torch.linalg.vector_norm(view.hidden_in, dim=-1, dtype=torch.float32) if self.relative else delta
