"""The DASH ablation that scores the whole block in place of its attention branch."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import LayerView, Policy


@dataclass(frozen=True, kw_only=True)
class DashLayer(Policy):
    """Keep the tokens with the largest whole-layer delta, ||H_out - H_in||_2 at layer l_s (DASH, Fig. 7)."""

    name: ClassVar[str] = "dash-layer"
    summary: ClassVar[str] = "largest whole-layer update stays active"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), Sec. 4.5; the reference's l_nr variant"
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boundary != "block":
            raise PolicyError('dash-layer compares the input and output of the whole block: use boundary="block"')

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden_in", "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        assert view.hidden_out is not None  # __post_init__ allows no other boundary
        delta: torch.Tensor = torch.linalg.vector_norm(view.hidden_out.float() - view.hidden_in.float(), dim=-1)
        return delta
