"""The interface of a policy: where it decides, how many tokens it halts, and how it scores the tokens of a sequence."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import torch

from deltahalt.errors import PolicyError, UnsupportedError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.halted_states import LastState
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.options import check_types, require_at_least
from deltahalt.policies.selection import halted_count, refuse_nan, spread_over_chunks, top_k

Scope = Literal["all", "visual", "text", "image", "video"]
Boundary = Literal["block", "attention"]
RatioOf = Literal["eligible", "prompt"]
# Fields of a LayerView that cost memory or time. Positions and kinds of tokens are always there.
READABLE = frozenset({"hidden_in", "update", "hidden_out", "queries", "keys", "lookahead", "embeddings"})


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The base of all policies: it scores tokens at its start layer l_s, and those with the lowest scores halt there.

    A subclass gives a `name`, a `summary` and a `source`, and overrides `score`. Its fields are its options.

    Attributes:
        start: Start layer l_s: an index from 0, such as 11 (int), or a fraction of the L layers, such as 0.4 (float),
            which is layer floor(0.4 L).
        pruning_ratio: Share rho of the eligible tokens that halts at l_s, in [0, 1]; 0.667 is two thirds.
        keep: Number of tokens in the scope that stay active after l_s, protected ones included, in place of
            pruning_ratio. 0 uses pruning_ratio.
        shortest: Number of tokens in the prompt from which tokens halt; a shorter prompt stays whole.
        keep_first: Number of tokens at the start of the prompt that never halt.
        keep_last: Number of tokens at the end of the prompt that never halt; 1 or more, since the last token yields
            the logits.
        scope: Eligible tokens: "all", "text", or in vision-language models "visual", "image" or "video". In a scope
            without text, keep_first and keep_last do not apply: only the last token of the prompt is protected.
        boundary: Where tokens halt: "block" is after the whole layer l_s (DASH, Alg. 1), "attention" is between its
            attention and its FFN.
        ratio_of: What rho is a share of: the "eligible" tokens (DASH, App. A), or the whole "prompt" of T tokens, of
            which K = floor((1 - rho) T) stay active (Eq. 3).
        chunk: Number of contiguous eligible tokens that share their mean score, so that they stay or halt together.
            One chunk may be cut, so that the ratio is exact. 1 scores each token by itself, as in the paper.

    Raises:
        PolicyError: For an option out of range.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class LongStates(Policy):
        ...     name = "long-states"
        ...
        ...     def score(self, view):
        ...         return torch.linalg.vector_norm(view.hidden_in, dim=-1)
        >>> policy = LongStates(start=11, pruning_ratio=0.5)
        >>> format_policy(policy)
        'long-states:start=11,pruning_ratio=0.5'
        >>> policy.kept(4096)
        2096
    """

    name: ClassVar[str] = "policy"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = "LLM"  # where the policy acts
    pointwise: ClassVar[bool] = False  # the score of a token depends on that token alone
    reads_question: ClassVar[bool] = False  # where the question is known, its tokens are the query tokens, and stay
    scores_by_count: ClassVar[bool] = False  # scores depend on how many tokens stay active

    start: float | int = 0.4
    pruning_ratio: float = 0.667
    keep: int = 0
    shortest: int = 0
    keep_first: int = 64
    keep_last: int = 32
    scope: Scope = "all"
    boundary: Boundary = "block"
    ratio_of: RatioOf = "eligible"
    chunk: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.start < (math.inf if isinstance(self.start, int) else 1):
            raise PolicyError(f"start is {self.start!r}; give a layer index >= 0 or a fraction of the layers in [0, 1)")
        if not 0 <= self.pruning_ratio <= 1:
            raise PolicyError(f"pruning_ratio is {self.pruning_ratio!r}; it must lie in [0, 1]")
        if self.keep < 0:
            raise PolicyError(f"keep is {self.keep!r}; give a number of tokens, or 0 to use pruning_ratio")
        if self.keep and self.pruning_ratio != type(self).pruning_ratio:
            raise PolicyError(
                f"keep is {self.keep} and pruning_ratio is {self.pruning_ratio}: both say how many tokens stay, so "
                "leave one of them out"
            )
        require_at_least(self, 0, "shortest", "keep_first")
        if self.keep_last < 1:
            raise PolicyError(f"keep_last is {self.keep_last!r}; the last token yields the logits, so keep at least 1")
        require_at_least(self, 1, "chunk")

    @property
    def stages(self) -> tuple["Policy", ...]:
        """The single-layer decisions that this policy consists of, in order."""
        return (self,)

    @property
    def ends(self) -> tuple[int, int]:
        """Number of protected tokens at the start and at the end of a prompt."""
        return (self.keep_first, self.keep_last) if TEXT in SCOPES[self.scope] else (0, 1)

    @property
    def scored_layers(self) -> int:
        """Number of layers, l_s the last of them, whose scores are summed."""
        return 1

    @property
    def layers_ahead(self) -> int:
        """Number of deeper layers in the look-ahead; fewer where the model ends earlier."""
        return 0

    @property
    def reads(self) -> frozenset[str]:
        """Names of the fields of a view that `score` reads, out of READABLE; by default all."""
        return READABLE

    @property
    def halted_states(self) -> LastState | None:
        """The states from which deeper layers compute K and V of halted tokens. None: they hold no such K/V."""
        return None

    @property
    def resumed_share(self) -> float:
        """Share of the halted tokens that run on in a later turn, in [0, 1]; needs a score of hidden states alone."""
        return 0

    def score(self, view: LayerView) -> torch.Tensor:
        """Score of each of the n active tokens: [n]. Those with the highest scores stay active."""
        raise NotImplementedError

    def select(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """Indices [count], ascending, of the tokens that stay active among m eligible tokens with `scores` [m]."""
        return top_k(spread_over_chunks(scores, self.chunk), count)

    def in_scope(self, kinds: torch.Tensor) -> torch.Tensor:
        """Which of n tokens of `kinds` [n] are in the scope, protected ones included: [n] bool."""
        return torch.isin(kinds, kinds.new_tensor(SCOPES[self.scope]))

    def eligible(self, positions: torch.Tensor, prompt: int, kinds: torch.Tensor | None = None) -> torch.Tensor:
        """Which tokens at `positions` [n], of `kinds` [n], may halt in a prompt of `prompt` tokens: [n] bool."""
        first, last = self.ends
        inside = (positions >= first) & (positions < prompt - last)
        return inside if kinds is None else inside & self.in_scope(kinds)

    def kept(self, prompt: int, kinds: torch.Tensor | None = None) -> int:
        """Number of tokens in the scope that are active after l_s. It is known before any layer runs.

        Args:
            prompt: Number of tokens in the prompt.
            kinds: [prompt] Kind of each token. None: all tokens count as of the scope.
        """
        if kinds is None:
            tokens, eligible = prompt, max(0, prompt - sum(self.ends))
        else:
            places = torch.arange(prompt, device=kinds.device)
            tokens, eligible = int(self.in_scope(kinds).sum()), int(self.eligible(places, prompt, kinds).sum())
        if prompt < self.shortest:
            return tokens
        if self.keep:
            return max(tokens - eligible, min(self.keep, tokens))
        if self.ratio_of == "prompt":
            return max(tokens - eligible, math.floor((1 - Fraction(str(self.pruning_ratio))) * tokens))
        return tokens - halted_count(eligible, self.pruning_ratio)

    def may_halt(self, view: LayerView) -> torch.Tensor:
        """Which of the n tokens in `view` may halt: [n] bool."""
        kinds = None if view.kinds is None else view.kinds[view.positions]
        return self.eligible(view.positions, view.prompt, kinds)

    def eligible_and_count(self, view: LayerView) -> tuple[torch.Tensor, int]:
        """Which of the n tokens in `view` may halt, [n] bool, and the number of these that stay active.

        The count waits for the GPU: a score that does not depend on it reads `may_halt`.
        """
        eligible = self.may_halt(view)
        protected = ~eligible if view.kinds is None else ~eligible & self.in_scope(view.kinds[view.positions])
        return eligible, max(0, self.kept(view.prompt, view.kinds) - int(protected.sum()))

    def active_set(self, scores: torch.Tensor, view: LayerView) -> torch.Tensor:
        """Indices [k], ascending, of the tokens in `view` that stay active; all tokens out of scope are among them.

        scores: [n], summed over the scored layers. Raises PolicyError if one is NaN, or for another shape.
        """
        refuse_nan(scores, self.name)
        return self.choose(scores, view)

    def choose(self, scores: torch.Tensor, view: LayerView) -> torch.Tensor:
        """As `active_set`, without its check for NaN, which waits for the GPU: the caller checks. NaN ranks highest."""
        if scores.shape != view.positions.shape:
            raise PolicyError(
                f"{self.name} returned scores of shape {list(scores.shape)} for {len(view.positions)} tokens: return "
                f"one number for each token, [{len(view.positions)}]"
            )
        if view.kinds is None and len(scores) == view.prompt:
            return self._active_set_of_whole_text(scores)
        eligible, count = self.eligible_and_count(view)
        candidates = eligible.nonzero().squeeze(1)
        if count >= len(candidates):
            return torch.arange(len(eligible), device=eligible.device)
        chosen = candidates[self.select(scores[candidates], count)]
        return torch.cat([(~eligible).nonzero().squeeze(1), chosen]).sort().values

    def _active_set_of_whole_text(self, scores: torch.Tensor) -> torch.Tensor:
        """`choose` for a whole prompt of text: counts follow from its length, so this never waits for the GPU."""
        prompt, device = len(scores), scores.device
        first, last = self.ends
        stop = prompt - last
        count = max(0, self.kept(prompt) - first - last)
        if count >= stop - first:
            return torch.arange(prompt, device=device)
        chosen = self.select(scores[first:stop], count).to(device) + first
        return torch.cat([torch.arange(first, device=device), chosen, torch.arange(stop, prompt, device=device)])


@dataclass(frozen=True)
class Progressive:
    """Several policies in one model, each at its own layer: each chooses among the tokens still active there.

    Every `pruning_ratio` is a share of the whole prompt's eligible tokens, so ratios grow from stage to stage. Stages
    whose scopes share no token may decide at the same layer, each with its own ratio:
    `Progressive([Dash(scope="visual", pruning_ratio=0.8), Dash(scope="text", pruning_ratio=0.3)])`.

    Attributes:
        stages: Policies in ascending order of their start layers. One that has several stages itself is split.

    Raises:
        PolicyError: For a stage that is not a `Policy`, or a ratio lower than that of an earlier stage of that scope.

    Example:
        Half of the eligible tokens stay active after the first stage, and a fifth after the second:

        >>> policy = Progressive([KeyNorm(start=4, pruning_ratio=0.5), WindowAttention(start=14, pruning_ratio=0.8)])
        >>> format_policy(policy)
        'key-norm:start=4,pruning_ratio=0.5+window-attention:start=14,pruning_ratio=0.8'
        >>> [stage.kept(4096) for stage in policy.stages]
        [2096, 896]
    """

    stages: Sequence[Policy]

    def __post_init__(self) -> None:
        given = tuple(self.stages)
        if not given or not all(isinstance(stage, Policy) for stage in given):
            raise PolicyError(
                "Progressive takes a list of one or more policies of the decoder, such as "
                f"[KeyNorm(start=4), Dash(start=11)]; it was given {given!r}"
            )
        stages = tuple(single for stage in given for single in stage.stages)
        for earlier, later in itertools.combinations(stages, 2):
            if later.scope != earlier.scope:
                continue
            if earlier.keep and later.keep > earlier.keep:
                raise PolicyError(
                    f"keep grows from {earlier.keep} to {later.keep}, but halted tokens do not come back: give the "
                    f"later stage {earlier.keep} or less"
                )
            if not earlier.keep and not later.keep and later.pruning_ratio < earlier.pruning_ratio:
                raise PolicyError(
                    f"pruning_ratio falls from {earlier.pruning_ratio} to {later.pruning_ratio}: it is a share of the "
                    f"whole prompt, so give the later stage {earlier.pruning_ratio} or more"
                )
        object.__setattr__(self, "stages", stages)


AnyPolicy = Policy | Progressive


@dataclass(frozen=True)
class Stage:
    """Policies placed in a model: layers `first` to `last` are scored, and tokens halt at `last`.

    Several policies have scopes that share no token. running: number of a prompt's last tokens that halt in no stage.
    resumed_share: share of the halted tokens that run on in a later turn; 0 in a model with several stages.
    """

    policies: tuple[Policy, ...]
    first: int
    last: int
    running: int = 0
    resumed_share: float = 0

    @property
    def boundary(self) -> Boundary:
        """Where tokens halt in layer `last`."""
        return self.policies[0].boundary

    @property
    def tail(self) -> int:
        """Number of a prompt's last tokens that never halt in this stage."""
        return min(policy.ends[1] for policy in self.policies)

    @property
    def halted_states(self) -> LastState | None:
        """The states from which deeper layers compute K and V of tokens that halt here: see `Policy.halted_states`."""
        return self.policies[0].halted_states

    def ahead(self, policy: Policy, layer: int, layers: int) -> int:
        """Number of layers in the look-ahead of one of the policies from `layer`, in a model of `layers` layers."""
        return min(policy.layers_ahead, layers - 1 - layer) if self.first <= layer <= self.last else 0

    def joined_by(self, policy: Policy, first: int, last: int) -> "Stage | None":
        """This stage with `policy`, placed at layers `first` to `last`, added; None where they cannot share a stage."""
        apart = all(set(SCOPES[policy.scope]).isdisjoint(SCOPES[own.scope]) for own in self.policies)
        alike = (first, last, policy.boundary) == (self.first, self.last, self.boundary)
        dropped = policy.halted_states is None and self.halted_states is None
        return Stage((*self.policies, policy), first, last) if apart and alike and dropped else None


def place(policy: AnyPolicy, layers: int, *, vision: bool = False) -> tuple[Stage, ...]:
    """Place a policy's stages in a model of `layers` layers. vision: whether the kinds of its tokens are known.

    Raises PolicyError where a stage has no deeper layer left, two stages overlap, or too few tokens run through all
    layers to predict the states of the others; and UnsupportedError for a scope that the model does not have.
    """
    stages: list[Stage] = []
    for part in policy.stages:
        last = part.start if isinstance(part.start, int) else math.floor(part.start * layers)
        first = last - part.scored_layers + 1
        after = stages[-1].last + 1 if stages else 0
        if TEXT not in SCOPES[part.scope] and not vision:
            raise UnsupportedError(
                f'scope="{part.scope}" needs a vision-language model, passed whole; use scope="all" for this one'
            )
        if last > layers - 2:
            raise PolicyError(
                f"{part.name} starts at layer {last}, which leaves no deeper layer to save: the model has layers 0 to "
                f"{layers - 1}, so start at {layers - 2} at most"
            )
        if stages and (joint := stages[-1].joined_by(part, first, last)):
            stages[-1] = joint
            continue
        if first < after:
            raise PolicyError(
                f"{part.name} scores layers {first} to {last}, but must begin at layer {after} or deeper: give it a "
                "larger start, put stages in ascending order, or sum fewer layers"
            )
        stages.append(Stage((part,), first, last))
    running = min((stage.tail for stage in stages), default=0)
    for stage in stages:
        fewest = 0 if stage.halted_states is None else stage.halted_states.fewest_running
        if running < fewest:
            raise PolicyError(
                f"{stage.policies[0].name} needs at least {fewest} tokens at the prompt's end that are never halted "
                f"(here {running}): set keep_last={fewest} or more in every stage, and use a scope that includes text"
            )
    share = policy.stages[0].resumed_share if len(policy.stages) == 1 else 0
    return tuple(replace(stage, running=running, resumed_share=share) for stage in stages)
