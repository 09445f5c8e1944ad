"""The base classes of ViT-stage policies: where they act, how many groups they keep, and which groups of an image."""

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
    """The groups of one image or frame at one block, without the rest of the pack: the whole input of a policy.

    n groups of u patches are active, in the tower's own order. D is the tower's hidden size, d its head size.
    """

    block: int
    total: int  # number of groups in the whole image or frame, halted ones included
    places: torch.Tensor  # [n] number of each group among those of all images: ascending in raster order
    hidden_in: torch.Tensor  # [n, u, D] input of the block
    update: torch.Tensor  # [n, u, D] output of the attention module before the residual addition: U of DASH Eq. 1
    queries: Callable[[], torch.Tensor]  # [heads, n * u, d], after rotary embedding
    keys: Callable[[], torch.Tensor]  # [heads, n * u, d], after rotary embedding
    raw_keys: Callable[[], torch.Tensor]  # [heads, n * u, d], before rotary embedding
    class_queries: torch.Tensor  # [heads, c, d] of the class token; c is 1, or 0 in a tower without one
    class_keys: torch.Tensor  # [heads, c, d]
    scaling: float  # factor on q.k
    segments: tuple[int, ...]  # number of groups in each segment; attention stays inside a segment
    sizes: torch.Tensor  # [n] number of groups merged into each, float32
    normed: Callable[[torch.Tensor], torch.Tensor]  # applies the next block's first norm to states [n, u, D]

    @property
    def raster(self) -> torch.Tensor:
        """Indices [n] that put the groups into raster order."""
        return self.places.argsort()

    def per_group(self, patches: torch.Tensor) -> torch.Tensor:
        """Return values of patches [n * u, ...] averaged over the patches of each group, in float32: [n, ...]."""
        return patches.unflatten(0, (len(self.places), -1)).float().mean(dim=1)


@dataclass(frozen=True)
class Reduced:
    """The k kept groups of n: their ascending index [k], states [k, ...], and sizes [k] if attention uses them."""

    index: torch.Tensor
    states: torch.Tensor
    sizes: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class VisionPolicy:
    """A policy that reduces the groups of an image, from some block of the ViT on.

    A group is the set of patches that become one visual token: 2x2 patches in the Qwen models, one patch in LLaVA. The
    patches of a group stay or halt together.

    Args:
        retain: Share of an image's groups that is kept, in (0, 1]; the count is rounded, and is at least 1.
        start: The block that decides, as an index (negative: from the end), or as a fraction of the depth in [0, 1),
            which gives block floor(start * depth).

    Raises:
        PolicyError: For an option out of range.
    """

    name: ClassVar[str] = "vision-policy"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = "vision"  # where the policy acts
    unit: ClassVar[Literal["image", "frame"]] = "image"  # what the policy is given at a time
    # Groups leave after the attention of a block, after the block, or after the tower.
    cut: ClassVar[Literal["attention", "block", "features"]] = "block"

    retain: float = 0.5
    start: float | int = 2

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.retain <= 1:
            raise PolicyError(f"retain is {self.retain!r}; it must lie in (0, 1]")
        if isinstance(self.start, float) and not 0 <= self.start < 1:
            raise PolicyError(
                f"start is {self.start!r}; give a block index (a whole number) or a fraction of the depth in [0, 1)"
            )

    def kept(self, total: int) -> int:
        """Return how many of an image's `total` groups are kept in the end."""
        return max(1, round(Fraction(str(self.retain)) * total))

    def blocks(self, depth: int) -> range:
        """Return the blocks, of `depth`, at which the policy decides. Raises PolicyError if it does not fit them."""
        first = self._first(depth)
        return range(first, first + 1)

    def count(self, total: int, active: int) -> int:
        """Return how many of the `active` groups, out of `total`, are kept after a deciding block."""
        return min(active, self.kept(total))

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        """Keep `count` of the n groups in `view`, whose latest states are `states` [n, ...]."""
        raise NotImplementedError

    def _first(self, depth: int) -> int:
        """Return the index of the block at `start`."""
        first = self.start if isinstance(self.start, int) else math.floor(self.start * depth)
        first += depth if first < 0 else 0
        last = depth - 2 if self.cut == "block" else depth - 1  # halting after the last block saves nothing
        if not 0 <= first <= last:
            raise PolicyError(
                f"{self.name} starts at block {self.start}; in this tower of {depth} blocks, give 0 to {last}"
            )
        return first


@dataclass(frozen=True, kw_only=True)
class GroupHalting(VisionPolicy):
    """A policy that halts groups after one block and leaves the states of the kept groups unchanged."""

    def score(self, view: GroupView) -> torch.Tensor:
        """Return a score for each of the n groups, [n]; the groups with the highest scores stay active."""
        raise NotImplementedError

    def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
        """Return the ascending index [count] of the groups to keep. states: [n, u, D], output of the block."""
        scores = self.score(view)
        refuse_nan(scores, self.name)
        return top_k(scores, count)

    def reduce(self, view: GroupView, states: torch.Tensor, count: int) -> Reduced:
        index = self.select(view, states, count)
        return Reduced(index, states[index])
