"""BothEnds: passages similar to the start or the end of a prompt stay active, so its question may be at either end."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError
from deltahalt.policies.base import Policy
from deltahalt.policies.late_interaction import COMPARED, directions_in, states_of
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.options import require_at_least

RUN = 8  # contiguous tokens that share their best match; divides COMPARED
ROUNDING = 1e-3  # similarities that differ by less are equal: else a group that finds nothing would add its rounding
SHARPNESS = 3  # exponent on a group's scores: what one group finds clearly outweighs what all groups find a little


@dataclass(frozen=True, kw_only=True)
class BothEnds(Policy):
    """Keep the tokens around which hidden states are most similar to those of the protected tokens at both ends.

    The query tokens are the first `keep_first` and the last `keep_last`, in nine groups, counted from the prompt's
    ends: the first ones, their half, quarter and eighth; the last ones, their half, quarter, eighth and sixteenth. For
    each query token, the match of a token is the highest similarity to a state within `reach` tokens of it. A match
    counts by how far it exceeds the query token's average over the prompt, to the `power`. A token gets the sum of the
    `best` highest of these in a group. Each group's sums are divided by their average over the prompt, and the score is
    the sum of their cubes. So a question of few tokens counts as much as a long text around it, wherever in both ends
    it stands, and what one group finds clearly outweighs what all groups find a little.

    Where the question is known (see `deltahalt.halting`), its tokens are the query tokens, in one group, and stay
    active.

    The policy reads hidden states only: no queries, keys or deeper layers. So a layer with a sliding window can decide.
    In a scope without text, the query tokens are limited to those before the first and after the last token that may
    halt.

    Attributes:
        keep_first: Number of tokens at the start of the prompt that never halt, and are query tokens.
        keep_last: Number of tokens at the end of the prompt that never halt, and are query tokens; 1 or more.
        best: Number of query tokens of a group that count for a token, 1 or more: those with the highest matches.
        reach: Distance, in tokens, up to which a match counts for a token; a multiple of 8, 0 or more, since 8
            contiguous tokens share their best match.
        power: Exponent on how far a match exceeds the average over the prompt, 1 or more. With a higher one, a rare
            match outweighs more common ones.
        resume: Share of the halted tokens that run on in each later turn, in [0, 1]: those around the states most
            similar to the turn's tokens, 4,096 at most. The cache keeps their states until then, [n, D]. 0 keeps none.

    Raises:
        PolicyError: For an option out of range.

    Source:
        Ours, after ColBERT's late interaction (arXiv 2004.12832).

    Example:
        >>> policy = BothEnds(start=2, pruning_ratio=0.5, best=4)
        >>> format_policy(policy)
        'both-ends:start=2,pruning_ratio=0.5,best=4'
        >>> policy.kept(4096)
        2240
    """

    name: ClassVar[str] = "both-ends"
    summary: ClassVar[str] = "tokens around the states most similar to the prompt's first and last tokens stay active"
    source: ClassVar[str] = "ours, after ColBERT's late interaction (arXiv 2004.12832)"
    reads_question: ClassVar[bool] = True

    keep_first: int = 256
    keep_last: int = 128
    best: int = 8
    reach: int = 64
    power: int = 3
    resume: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "best", "power")
        if not 0 <= self.resume <= 1:
            raise PolicyError(f"resume is {self.resume!r}; it must lie in [0, 1]")
        if self.reach < 0 or self.reach % RUN:
            raise PolicyError(f"reach is {self.reach}; it must be a multiple of {RUN}, 0 or more")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden_in" if self.boundary == "attention" else "hidden_out"})

    @property
    def resumed_share(self) -> float:
        return self.resume

    def score(self, view: LayerView) -> torch.Tensor:
        among, question = self.may_halt(view), view.active_question
        first, last = self._query_ends(view, among)
        query = _first_and_last(first, last, among) if question is None else question
        scores = torch.zeros(len(among), device=among.device)
        if not len(query):
            return scores
        best = _best_matches(states_of(view), query, self.reach)  # [q, runs]
        free = _in_runs(among.float()).sum(dim=1)  # number of tokens in each run that may halt
        usual = (best * free).sum(dim=1, keepdim=True) / free.sum()
        above = (best - usual - ROUNDING).clamp(min=0).pow(self.power)
        for group in _groups(above, first) if question is None else [above]:
            found = group.topk(min(self.best, len(group)), dim=0).values.sum(dim=0)
            average = (found * free).sum() / free.sum()
            clear = (found / average.clamp(min=torch.finfo(found.dtype).tiny)).pow(SHARPNESS)
            scores += clear.repeat_interleave(RUN)[: len(among)]
        scores = scores.masked_fill(~among, 0)
        return scores if question is None else scores.index_fill(0, question, torch.inf)

    def _query_ends(self, view: LayerView, among: torch.Tensor) -> tuple[int, int]:
        """Number of query tokens at the start and at the end, where the tokens `among` [n] bool may halt."""
        if view.kinds is None and len(among) == view.prompt:
            return self.ends
        places = among.nonzero()
        if not len(places):  # none may halt
            return 0, 0
        return min(self.keep_first, int(places[0])), min(self.keep_last, len(among) - 1 - int(places[-1]))


def _first_and_last(first: int, last: int, among: torch.Tensor) -> torch.Tensor:
    """Index [first + last] of the first and last of n tokens; `among`, [n], gives their number and device."""
    index = torch.arange(len(among), device=among.device)
    return torch.cat([index[:first], index[len(index) - last :]])


def _groups(above: torch.Tensor, first: int) -> list[torch.Tensor]:
    """The rows of each group, out of those of the query tokens, of which `first` are at the start of the prompt."""
    at_start, at_end = above[:first], above[first:]
    groups = [at_start[: _share(first, part)] for part in (8, 4, 2, 1)]
    groups += [at_end[-_share(len(at_end), part) :] for part in (16, 8, 4, 2, 1)]
    return [group for group in groups if len(group)]


def _share(count: int, part: int) -> int:
    """The `part`-th part of `count` tokens, at least one of them."""
    return -(-count // part)


def _best_matches(states: torch.Tensor, query: torch.Tensor, reach: int) -> torch.Tensor:
    """For each query token, its highest similarity to a state within `reach` tokens of each run: [q, runs].

    states: [n, D]. query: [q] index of the query tokens, which do not match each other.
    """
    directions = directions_in(states, standardize=True)
    own = torch.zeros(len(states), dtype=torch.bool, device=states.device).index_fill(0, query, True)
    wanted = directions(states[query])
    pieces = zip(states.split(COMPARED), own.split(COMPARED), strict=True)
    similar = [(wanted @ directions(piece).mT).masked_fill(queries, -1) for piece, queries in pieces]
    best = torch.cat([F.max_pool1d(part[None], RUN, ceil_mode=True)[0] for part in similar], dim=1)
    return F.max_pool1d(best[None], 2 * (reach // RUN) + 1, stride=1, padding=reach // RUN)[0]


def _in_runs(values: torch.Tensor) -> torch.Tensor:
    """`values` [n] in one row for each run, [runs, RUN]; zeros fill the last row."""
    return F.pad(values, (0, -len(values) % RUN)).unflatten(0, (-1, RUN))
