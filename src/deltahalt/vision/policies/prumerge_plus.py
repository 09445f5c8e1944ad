"""PruMerge+: groups that stand out in attention, filled up over the image, each with its neighbours merged in."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.policies.selection import evenly
from deltahalt.vision.attention import attention_on_groups
from deltahalt.vision.policy import GroupView, Reduced, VisionPolicy

ROWS = 128  # kept groups compared with all at once


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(VisionPolicy):
    """Keep groups whose attention is an outlier, Q3 + 1.5 IQR, then evenly spaced ones up to the budget.

    All blocks run in full; what shrinks is the tower's output. To each kept feature its `neighbours` nearest (cosine of
    raw keys, averaged over heads and patches) are added, each times its share of the image's attention. With more
    outliers than the budget, the most attended stay. Attention is the class token's, where the tower has one.

    neighbours: number of groups whose features are added to each kept one, 0 or more.
    """

    name: ClassVar[str] = "prumerge-plus"
    summary: ClassVar[str] = "attention outliers and evenly spaced groups stay, with their neighbours merged in"
    source: ClassVar[str] = (
        "LLaVA-PruMerge (arXiv 2403.15388); attention of the CLS token, or received from all patches"
    )
    cut: ClassVar[Literal["attention", "block", "features"]] = "features"

    start: float | int = -2
    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 0:
            raise PolicyError(f"neighbours is {self.neighbours}; give 0 or more")

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        attention = attention_on_groups(view)
        attention = attention / attention.sum()
        index = self.choose(attention, view.raster, count)
        keys = F.normalize(view.per_group(view.raw_keys().float().mean(dim=0)), dim=-1)
        added = torch.cat([self._neighbours(rows, keys, attention, states) for rows in index.split(ROWS)])
        return Reduced(index, (states[index].float() + added).to(states.dtype))

    def choose(self, attention: torch.Tensor, raster: torch.Tensor, count: int) -> torch.Tensor:
        """Ascending index of `count` groups, by the attention [n] that each received. raster: their raster order."""
        lower, upper = attention.sort().values.quantile(attention.new_tensor([0.25, 0.75]))
        order = attention.argsort(descending=True, stable=True)
        outliers = order[: int((attention > upper + 1.5 * (upper - lower)).sum())][:count]
        others = raster[~torch.isin(raster, outliers)]
        filled = others[evenly(len(others), count - len(outliers)).to(others.device)]
        return torch.cat([outliers, filled]).sort().values

    def _neighbours(
        self, rows: torch.Tensor, keys: torch.Tensor, attention: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """What the groups at `rows` [k] get from the nearest others: [k, ...] float32."""
        likeness = keys[rows] @ keys.T  # [k, n]
        likeness[torch.arange(len(rows)), rows] = -torch.inf  # not itself
        nearest = likeness.topk(min(self.neighbours, len(keys) - 1), dim=1).indices
        weights = torch.zeros_like(likeness).scatter(1, nearest, attention[nearest])
        return (weights @ states.flatten(1).float()).view(len(rows), *states.shape[1:])
