"""PruMerge+, which keeps attention outliers and evenly spaced groups and merges similar groups into them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.policies.options import require_at_least
from deltahalt.policies.selection import evenly
from deltahalt.vision.attention import attention_on_groups
from deltahalt.vision.policy import GroupView, Reduced, VisionPolicy

ROWS = 128  # number of kept groups that are compared with all groups at once


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(VisionPolicy):
    """Keep the groups whose attention is an outlier, above Q3 + 1.5 IQR, then evenly spaced ones up to the budget.

    All blocks run on all groups; only the tower's output is reduced. To each kept feature, the features of its
    `neighbours` most similar groups are added, each multiplied by its share of the image's attention. Similarity is the
    cosine of keys before rotary embedding, averaged over heads and patches. If there are more outliers than the budget,
    those with the most attention stay. A group's attention is the class token's attention on it, or in a tower without
    a class token the attention that it receives from all patches.

    Args:
        neighbours: Number of groups whose features are added to each kept group, 0 or more.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> PruMergePlus(retain=0.25).kept(576)
        144
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
        require_at_least(self, 0, "neighbours")

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        attention = attention_on_groups(view)
        attention = attention / attention.sum()
        index = self.choose(attention, view.raster, count)
        keys = F.normalize(view.per_group(view.raw_keys().float().mean(dim=0)), dim=-1)
        added = torch.cat([self._neighbours(rows, keys, attention, states) for rows in index.split(ROWS)])
        return Reduced(index, (states[index].float() + added).to(states.dtype))

    def choose(self, attention: torch.Tensor, raster: torch.Tensor, count: int) -> torch.Tensor:
        """Return the ascending index of `count` groups. attention: [n], per group. raster: [n], their raster order."""
        lower, upper = attention.sort().values.quantile(attention.new_tensor([0.25, 0.75]))
        order = attention.argsort(descending=True, stable=True)
        outliers = order[: int((attention > upper + 1.5 * (upper - lower)).sum())][:count]
        others = raster[~torch.isin(raster, outliers)]
        filled = others[evenly(len(others), count - len(outliers)).to(others.device)]
        return torch.cat([outliers, filled]).sort().values

    def _neighbours(
        self, rows: torch.Tensor, keys: torch.Tensor, attention: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """Return what the most similar groups add to the groups at `rows` [k]: [k, ...] float32."""
        likeness = keys[rows] @ keys.T  # [k, n]
        likeness[torch.arange(len(rows)), rows] = -torch.inf  # not itself
        nearest = likeness.topk(min(self.neighbours, len(keys) - 1), dim=1).indices
        weights = torch.zeros_like(likeness).scatter(1, nearest, attention[nearest])
        return (weights @ states.flatten(1).float()).view(len(rows), *states.shape[1:])
