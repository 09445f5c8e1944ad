"""BothEnds: the passages that resemble the beginning or the end of a prompt, wherever its question stands."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.policies.base import LayerView, Policy
from deltahalt.policies.late_interaction import COMPARED, directions_in, states_of

RUN = 8  # tokens in a row whose best match counts for all of them; divides COMPARED


@dataclass(frozen=True, kw_only=True)
class BothEnds(Policy):
    """Keep the tokens around which the protected tokens at the prompt's ends find states most like their own.

    The query tokens are the first `keep_first` and the last `keep_last`, in three groups: all of the first, all of the
    last, and the very last `nearest`. A query token's match at a place is its highest similarity to a state within
    `reach` tokens; what that has above the token's average over the prompt is raised to a `power` and summed over the
    group. Each group's sums are scaled to shares that add up to one, and the score is the sum of shares: so a question
    of few tokens counts as much as the long text at the other end, and a group without clear matches changes little.

    Reads states alone: no queries, keys or deeper layers, so layers with a sliding window can decide, too. In a scope
    without text, the tokens before the first that may halt and after the last are query tokens, up to as many.
    nearest: 1 or more. reach: a multiple of eight, since eight tokens in a row share their best match.
    power: 1 or more; the higher, the more a rare match outweighs many common ones.
    """

    name: ClassVar[str] = "both-ends"
    summary: ClassVar[str] = "what is around the best matches of the prompt's first and last tokens stays active"
    source: ClassVar[str] = "ours, after ColBERT's late interaction (arXiv 2004.12832)"

    nearest: int = 16
    reach: int = 64
    power: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nearest", "power"):
            if getattr(self, name) < 1:
                raise PolicyError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.reach < 0 or self.reach % RUN:
            raise PolicyError(f"reach is {self.reach}; it must be a multiple of {RUN}, 0 or more")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden_in" if self.boundary == "attention" else "hidden_out"})

    def score(self, view: LayerView) -> torch.Tensor:
        among = self.eligible_and_count(view)[0]
        first, last = self._ends(among)
        best = _best_matches(states_of(view), first, last, self.reach)  # [first + last, runs]
        free = _in_runs(among.float()).sum(dim=1)  # how many tokens of each run may halt
        usual = (best * free).sum(dim=1, keepdim=True) / free.sum()
        above = (best - usual).clamp(min=0).pow(self.power)
        scores = torch.zeros_like(free)
        for group in (above[-min(self.nearest, last) :], above[first:], above[:first]):
            found = group.sum(dim=0)
            scores += found / (found * free).sum().clamp(min=torch.finfo(found.dtype).tiny)
        return scores.repeat_interleave(RUN)[: len(among)].masked_fill(~among, 0)

    def _ends(self, among: torch.Tensor) -> tuple[int, int]:
        """How many tokens are query tokens at the beginning and at the end, where `among` [n] bool may halt."""
        places = among.nonzero()
        return min(self.keep_first, int(places[0])), min(self.keep_last, len(among) - 1 - int(places[-1]))


def _best_matches(states: torch.Tensor, first: int, last: int, reach: int) -> torch.Tensor:
    """For each query token, its highest similarity to a state within `reach` tokens of each run: [first + last, runs].

    states: [n, D], of which the first and the last so many are query tokens; these match none of each other.
    """
    directions = directions_in(states, standardize=True)
    query = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    query[:first] = query[len(states) - last :] = True
    asking = directions(states[query])
    pieces = zip(states.split(COMPARED), query.split(COMPARED), strict=True)
    similar = [(asking @ directions(piece).mT).masked_fill(own, -1) for piece, own in pieces]
    best = torch.cat([F.max_pool1d(part[None], RUN, ceil_mode=True)[0] for part in similar], dim=1)
    return F.max_pool1d(best[None], 2 * (reach // RUN) + 1, stride=1, padding=reach // RUN)[0]


def _in_runs(values: torch.Tensor) -> torch.Tensor:
    """`values` [n] as rows of a run each, [runs, RUN]; zeros fill the last."""
    return F.pad(values, (0, -len(values) % RUN)).unflatten(0, (-1, RUN))
