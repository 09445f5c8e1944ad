"""What a ViT-stage method is: where it acts, how many groups it keeps, and how one image's groups are chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch

from deltahalt.errors import PolicyError
from deltahalt.policies.options import check_types
from deltahalt.policies.selection import refuse_nan, top_k


@dataclass(frozen=True)
class GroupView:
    """The groups of one image, or of one frame, at one block, free of the pack: all that a method may look at.

    n groups of u patches are active, in the tower's own order; D is the width of the tower, d the head size.
    """

    block: int
    total: int  # groups in the whole image or frame, halted ones included
    places: torch.Tensor  # [n] number of each group among those of all images: ascending in raster order
    hidden_in: torch.Tensor  # [n, u, D] input of the block
    update: torch.Tensor  # [n, u, D] output of the attention module, before the addition: U of the paper's Eq. 1
    queries: Callable[[], torch.Tensor]  # [heads, n * u, d], after rotary embedding
    keys: Callable[[], torch.Tensor]  # [heads, n * u, d], after rotary embedding
    raw_keys: Callable[[], torch.Tensor]  # [heads, n * u, d], as projected
    class_queries: torch.Tensor  # [heads, c, d] of the class token; c is 1 or, without one, 0
    class_keys: torch.Tensor  # [heads, c, d]
    scaling: float  # factor on q.k
    segments: tuple[int, ...]  # how many groups each run has that attends only to itself
    sizes: torch.Tensor  # [n] how many groups each stands for, in float32
    normed: Callable[[torch.Tensor], torch.Tensor]  # states [n, u, D] under the next block's first norm

    @property
    def raster(self) -> torch.Tensor:
        """Index of the groups in raster order, [n]."""
        return self.places.argsort()

    def per_group(self, patches: torch.Tensor) -> torch.Tensor:
        """Something of each patch, [n * u, ...], averaged over the patches of a group in float32, [n, ...]."""
        return patches.unflatten(0, (len(self.places), -1)).float().mean(dim=1)


@dataclass(frozen=True)
class Reduced:
    """What is left of n groups: their ascending index [k], their states [k, ...], and sizes [k] where those count."""

    index: torch.Tensor
    states: torch.Tensor
    sizes: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class VisionPolicy:
    """A method that leaves fewer groups of an image, from some block of the ViT on.

    A group is the patches that become one visual token (2x2 in the Qwen models, one in LLaVA); groups stay or go whole.

    retain: share of an image's groups that is kept, in (0, 1], rounded; at least one group of each image stays.
    start: the block that decides, as an index (negative from the end) or a fraction of the depth, floor(start * depth).

    Raises PolicyError on settings out of range.
    """

    name: ClassVar[str] = "vision-policy"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = "vision"  # where the method acts
    unit: ClassVar[Literal["image", "frame"]] = "image"  # what is looked at in one piece
    cut: ClassVar[Literal["attention", "block", "features"]] = "block"  # after what of a block, or of the whole tower

    retain: float = 0.5
    start: float | int = 2

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.retain <= 1:
            raise PolicyError(f"retain is {self.retain!r}; it must lie in (0, 1]")
        if isinstance(self.start, float) and not 0 <= self.start < 1:
            raise PolicyError(f"start is {self.start!r}; give a block's index or a fraction of the depth in [0, 1)")

    def kept(self, total: int) -> int:
        """How many of an image's `total` groups are kept in the end."""
        return max(1, round(Fraction(str(self.retain)) * total))

    def blocks(self, depth: int) -> range:
        """The blocks of a tower of `depth` that the method looks at. Raises PolicyError where it does not fit."""
        first = self._first(depth)
        return range(first, first + 1)

    def count(self, total: int, active: int) -> int:
        """How many of the `active` groups out of `total` are left after a block of `blocks`."""
        return min(active, self.kept(total))

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        """Leave `count` of the n groups in `view`, whose latest states are `states` [n, ...]."""
        raise NotImplementedError

    def _first(self, depth: int) -> int:
        """The block at `start`."""
        first = self.start if isinstance(self.start, int) else math.floor(self.start * depth)
        first += depth if first < 0 else 0
        last = depth - 2 if self.cut == "block" else depth - 1  # behind the last block nothing is left to save
        if not 0 <= first <= last:
            raise PolicyError(f"{self.name} starts at block {self.start}; this tower allows 0 to {last}")
        return first


@dataclass(frozen=True, kw_only=True)
class GroupHalting(VisionPolicy):
    """A method that halts groups after one block; the others go on unchanged."""

    def score(self, view: GroupView) -> torch.Tensor:
        """Score of each of the n groups, [n]; the highest stay active."""
        raise NotImplementedError

    def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
        """Ascending index of the `count` groups to keep; states: [n, u, D], output of the block."""
        scores = self.score(view)
        refuse_nan(scores, self.name)
        return top_k(scores, count)

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        index = self.select(view, states, count)
        return Reduced(index, states[index])
