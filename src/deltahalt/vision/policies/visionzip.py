"""VisionZip, which keeps the most attended groups and merges the others into a few contextual ones."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.vision.attention import attention_on_groups
from deltahalt.vision.policy import GroupView, Reduced, VisionPolicy

ROWS = 1024  # number of groups that are compared at once


@dataclass(frozen=True, kw_only=True)
class VisionZip(VisionPolicy):
    """Keep the groups with the most attention, and evenly spaced contextual groups that the others merge into.

    All blocks run on all groups; only the tower's output is reduced. The feature of a contextual group is its own plus
    the mean of those that merge into it, and it keeps its coordinates. Each other group merges into the most similar
    contextual group, by the cosine of keys before rotary embedding, averaged over heads and patches. A group's
    attention is the class token's attention on it, or in a tower without a class token the attention that it receives
    from all patches.

    Args:
        contextual: Share of the kept groups that are contextual, in [0, 1); 10 of 64 in the paper.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> VisionZip(retain=0.25, start=-2).blocks(24)
        range(22, 23)
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "the most attended groups stay, and the others merge into a few contextual groups"
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
            standing = torch.arange(targets, device=rest.device) * (len(rest) // targets)  # at even distances
            states = merge_into(states, keys, rest, rest[standing])
            dominant = torch.cat([dominant, rest[standing]])
        index = dominant.sort().values
        return Reduced(index, states[index])


def merge_into(states: torch.Tensor, keys: torch.Tensor, rest: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return states [n, ...] after each group in `rest` merged into the target with the most similar key [n, c]."""
    others = rest[~torch.isin(rest, targets)]
    nearest = torch.cat([(keys[rows] @ keys[targets].T).argmax(dim=1) for rows in others.split(ROWS)])
    sums = states.new_zeros(len(targets), *states.shape[1:], dtype=torch.float32)
    sums = sums.index_add(0, nearest, states[others].float())
    counts = torch.bincount(nearest, minlength=len(targets)).clamp(min=1)
    means = sums / counts.view(-1, *(1 for _ in states.shape[1:]))
    return states.index_copy(0, targets, (states[targets].float() + means).to(states.dtype))
