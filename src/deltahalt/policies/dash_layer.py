"""The ablation of DASH that scores the change by the whole layer in place of that by its attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView


@dataclass(frozen=True, kw_only=True)
class DashLayer(Policy):
    """Keep the tokens that the whole start layer changes most, by the norm ||H_out - H_in||_2.

    The change is that by attention and FFN together. The options are those of `Policy`.

    Raises:
        PolicyError: For an option out of range, or the boundary "attention", at which H_out is not known yet.

    Source:
        DASH (arXiv 2604.18103), Sec. 4.5 and Fig. 7; the variant l_nr of its reference code.

    Example:
        >>> policy = DashLayer(start=11, pruning_ratio=0.5)
        >>> format_policy(policy)
        'dash-layer:start=11,pruning_ratio=0.5'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "dash-layer"
    summary: ClassVar[str] = "tokens with the largest whole-layer update stay active"
    source: ClassVar[str] = "DASH (arXiv 2604.18103), Sec. 4.5; the reference's l_nr variant"
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boundary != "block":
            raise PolicyError('dash-layer compares the input and output of the whole layer: use boundary="block"')

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden_in", "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        assert view.hidden_out is not None  # __post_init__ allows no other boundary
        delta: torch.Tensor = torch.linalg.vector_norm(view.hidden_out.float() - view.hidden_in.float(), dim=-1)
        return delta
