"""VisionZip: the most attended groups, and a few that stand for the rest."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.vision.attention import attention_on_groups
from deltahalt.vision.policy import GroupView, Reduced, VisionPolicy

ROWS = 1024  # groups compared at once


@dataclass(frozen=True, kw_only=True)
class VisionZip(VisionPolicy):
    """Keep the groups that receive most attention; of the others, every so-many-th takes up those like it.

    All blocks run in full; what shrinks is the tower's output. A group that takes up others is its own feature plus the
    mean of theirs, and keeps its coordinates. Likeness is the cosine of raw keys, averaged over heads and patches.
    Attention is the class token's, where the tower has one.

    contextual: share of the kept groups that stands for the rest (10 of 64 as published).
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "most attended groups stay, a few take up the rest"
    source: ClassVar[str] = "VisionZip (arXiv 2412.04467); attention of the CLS token, or received from all patches"
    cut: ClassVar[Literal["attention", "block", "features"]] = "features"

    start: float | int = -2
    contextual: float = 0.15625

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual < 1:
            raise PolicyError(f"contextual is {self.contextual!r}; it must lie in [0, 1)")

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        targets = int(self.contextual * count)
        dominant = attention_on_groups(view).argsort(descending=True, stable=True)[: count - targets]
        if targets:
            rest = view.raster[~torch.isin(view.raster, dominant)]
            keys = F.normalize(view.per_group(view.raw_keys().float().mean(dim=0)), dim=-1)
            standing = torch.arange(targets, device=rest.device) * (len(rest) // targets)  # every so-many-th
            states = take_up(states, keys, rest, rest[standing])
            dominant = torch.cat([dominant, rest[standing]])
        index = dominant.sort().values
        return Reduced(index, states[index])


def take_up(states: torch.Tensor, keys: torch.Tensor, rest: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """States [n, ...] in which each of `targets` got the mean of those of `rest` whose keys [n, c] are most like it."""
    others = rest[~torch.isin(rest, targets)]
    nearest = torch.cat([(keys[rows] @ keys[targets].T).argmax(dim=1) for rows in others.split(ROWS)])
    sums = states.new_zeros(len(targets), *states.shape[1:], dtype=torch.float32)
    sums = sums.index_add(0, nearest, states[others].float())
    counts = torch.bincount(nearest, minlength=len(targets)).clamp(min=1)
    means = sums / counts.view(-1, *(1 for _ in states.shape[1:]))
    return states.index_copy(0, targets, (states[targets].float() + means).to(states.dtype))
