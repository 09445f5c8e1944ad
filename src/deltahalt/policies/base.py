"""What a policy is: where it decides, how many tokens it halts, and how one sequence's tokens are scored."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import torch

from deltahalt.errors import PolicyError, UnsupportedError
from deltahalt.kinds import SCOPES, TEXT
from deltahalt.policies.halted_states import LastState
from deltahalt.policies.options import check_types
from deltahalt.policies.selection import halted_count, refuse_nan, spread_over_chunks, top_k

Scope = Literal["all", "visual", "text", "image", "video"]
Boundary = Literal["block", "attention"]
RatioOf = Literal["eligible", "prompt"]
# Fields of a LayerView that cost memory or time, beside the positions and kinds of the tokens.
READABLE = frozenset({"hidden_in", "update", "hidden_out", "queries", "keys", "lookahead", "embeddings"})


@dataclass(frozen=True)
class LayerView:
    """One sequence at one layer, free of batch and padding: all that a policy may look at.

    n tokens are active, in ascending original position; D is the hidden size, d the head size.
    """

    layer: int
    prompt: int  # tokens in the whole prompt, halted ones included
    positions: torch.Tensor  # [n] place of each token in its own prompt
    hidden_in: torch.Tensor  # [n, D] input of the block
    update: torch.Tensor  # [n, D] output of the attention module, before any norm or addition: U of the paper's Eq. 1
    hidden_out: torch.Tensor | None  # [n, D] output of the block; None at the boundary inside it
    queries: Callable[[int], torch.Tensor]  # w -> [heads, w, d] of the last w active tokens, after RoPE
    keys: Callable[[], torch.Tensor]  # [kv_heads, n, d], after RoPE
    scaling: float  # factor on q.k
    window: int | None = None  # how far back the layer attends, in original positions; None: all the way
    # w -> the deeper layers in turn, as the last w active tokens would see them if all others stayed as they are
    lookahead: Callable[[int], Iterator["LayerView"]] = lambda _: iter(())
    kinds: torch.Tensor | None = None  # [prompt] what each token is, see `deltahalt.kinds`; None: all text
    embeddings: torch.Tensor | None = None  # [prompt, D] what went into the first layer, where there are `kinds`
    final_norm: Callable[[torch.Tensor], torch.Tensor] = lambda states: states  # the decoder's, before its logits

    @property
    def visual(self) -> torch.Tensor | None:
        """Which of the n tokens are of images or videos, [n] bool; None for a prompt of text."""
        return None if self.kinds is None else self.kinds[self.positions] > TEXT

    @property
    def sees_all(self) -> bool:
        """Whether the layer attends to the whole prompt."""
        return self.window is None or self.prompt <= self.window


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A method that halts prompt tokens once, at its start layer.

    start: the layer l_s that decides, as an index or as a fraction of the L layers, floor(start * L).
    pruning_ratio: share rho of the prompt's eligible tokens that is halted from l_s on, in [0, 1].
    keep_first, keep_last: tokens at either end of the prompt that are never halted; keep_last >= 1, since the
        last token yields the logits.
    scope: which tokens are eligible: "all", "text", or in vision-language models "visual", "image" or "video". The
        ratio is a share of these. keep_first and keep_last are places in the whole prompt; where the scope has no
        text they do not apply, and only the very last token of the prompt is protected.
    boundary: halt after the whole block l_s (Alg. 1), or already between its attention and its FFN.
    ratio_of: rho is a share of the eligible tokens (App. A), or of the whole prompt: K = floor((1 - rho) T) (Eq. 3).
    chunk: average the scores over contiguous chunks of so many eligible tokens; chunks then stay or halt whole, save
        for one that is cut so that the ratio is met exactly. 1 for token by token, as in the paper.

    Raises PolicyError on settings out of range.
    """

    name: ClassVar[str] = "policy"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = "LLM"  # where the method acts
    pointwise: ClassVar[bool] = False  # the score of a token depends on that token alone
    scores_by_count: ClassVar[bool] = False  # scores depend on how many tokens stay active

    start: float | int = 0.4
    pruning_ratio: float = 0.667
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
        if self.keep_first < 0:
            raise PolicyError(f"keep_first is {self.keep_first!r}; it must be 0 or more")
        if self.keep_last < 1:
            raise PolicyError(f"keep_last is {self.keep_last!r}; the last token yields the logits, so keep at least 1")
        if self.chunk < 1:
            raise PolicyError(f"chunk is {self.chunk!r}; it must be 1 or more")

    @property
    def stages(self) -> tuple["Policy", ...]:
        """The single-layer decisions that this policy consists of, in order."""
        return (self,)

    @property
    def ends(self) -> tuple[int, int]:
        """How many tokens at either end of a prompt are protected."""
        return (self.keep_first, self.keep_last) if TEXT in SCOPES[self.scope] else (0, 1)

    @property
    def scored_layers(self) -> int:
        """How many layers, ending at l_s, have their scores summed."""
        return 1

    @property
    def layers_ahead(self) -> int:
        """How many deeper layers a score looks ahead at, where there are as many."""
        return 0

    @property
    def reads(self) -> frozenset[str]:
        """The names in READABLE of what `score` reads of a view; by default all."""
        return READABLE

    @property
    def halted_states(self) -> LastState | None:
        """From which states deeper layers compute K and V of halted tokens; None: deeper layers do not hold them."""
        return None

    def score(self, view: LayerView) -> torch.Tensor:
        """Score of each of the n tokens, [n]; the highest stay active."""
        raise NotImplementedError

    def select(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """Ascending index of the `count` tokens to keep among eligible tokens with `scores` [m]."""
        return top_k(spread_over_chunks(scores, self.chunk), count)

    def in_scope(self, kinds: torch.Tensor) -> torch.Tensor:
        """Which tokens of `kinds` [n] this policy is about, protected ones included: [n] bool."""
        return torch.isin(kinds, kinds.new_tensor(SCOPES[self.scope]))

    def eligible(self, positions: torch.Tensor, prompt: int, kinds: torch.Tensor | None = None) -> torch.Tensor:
        """Which of the tokens at `positions` [n], of `kinds` [n], may halt in a prompt of `prompt` tokens: [n] bool."""
        first, last = self.ends
        inside = (positions >= first) & (positions < prompt - last)
        return inside if kinds is None else inside & self.in_scope(kinds)

    def kept(self, prompt: int, kinds: torch.Tensor | None = None) -> int:
        """How many tokens of the scope are active after l_s, of a prompt of `prompt` tokens of `kinds` [prompt].

        Known before any layer runs; for a prompt of text, from the length alone.
        """
        if kinds is None:
            tokens, eligible = prompt, max(0, prompt - sum(self.ends))
        else:
            places = torch.arange(prompt, device=kinds.device)
            tokens, eligible = int(self.in_scope(kinds).sum()), int(self.eligible(places, prompt, kinds).sum())
        if self.ratio_of == "prompt":
            return max(tokens - eligible, math.floor((1 - Fraction(str(self.pruning_ratio))) * tokens))
        return tokens - halted_count(eligible, self.pruning_ratio)

    def eligible_and_count(self, view: LayerView) -> tuple[torch.Tensor, int]:
        """Which of the n tokens in `view` may halt, [n] bool, and how many of these stay."""
        kinds = None if view.kinds is None else view.kinds[view.positions]
        eligible = self.eligible(view.positions, view.prompt, kinds)
        protected = ~eligible if kinds is None else ~eligible & self.in_scope(kinds)
        return eligible, max(0, self.kept(view.prompt, view.kinds) - int(protected.sum()))

    def active_set(self, scores: torch.Tensor, view: LayerView) -> torch.Tensor:
        """Ascending index [k] of the tokens that stay active, of the n in `view`; all that are out of scope do.

        scores: [n], summed over the scored layers. Raises PolicyError if one is NaN, or for another shape.
        """
        refuse_nan(scores, self.name)
        return self.choose(scores, view)

    def choose(self, scores: torch.Tensor, view: LayerView) -> torch.Tensor:
        """As `active_set`, but NaN counts as the highest score: no GPU is waited for, and the caller looks for NaN."""
        if scores.shape != view.positions.shape:
            raise PolicyError(
                f"{self.name} scored {list(scores.shape)}, not one number for each of {len(view.positions)}"
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
        """The same for a whole prompt of text, where counts follow from the length: no GPU is waited for."""
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
    """Several policies, each at its own layer, each choosing among the tokens that are still active there.

    Every ratio is a share of the whole prompt's eligible tokens, so ratios grow from stage to stage:
    Progressive([KeyNorm(start=0.15, pruning_ratio=0.5), WindowAttention(start=0.5, pruning_ratio=0.8)]) leaves half of
    them after the first stage and a fifth after the second.

    Stages whose scopes share no token may decide at one layer, each with its own ratio:
    Progressive([Dash(scope="visual", pruning_ratio=0.8), Dash(scope="text", pruning_ratio=0.3)]).
    """

    stages: Sequence[Policy]

    def __post_init__(self) -> None:
        given = tuple(self.stages)
        if not given or not all(isinstance(stage, Policy) for stage in given):
            raise PolicyError(
                "Progressive takes one or more policies that decide at one layer each, such as Dash(start=0.4)"
            )
        stages = tuple(single for stage in given for single in stage.stages)
        for earlier, later in itertools.combinations(stages, 2):
            if later.scope == earlier.scope and later.pruning_ratio < earlier.pruning_ratio:
                raise PolicyError(
                    f"pruning_ratio falls from {earlier.pruning_ratio} to {later.pruning_ratio}: it is a share of the "
                    "whole prompt, so it may not fall from stage to stage"
                )
        object.__setattr__(self, "stages", stages)


AnyPolicy = Policy | Progressive


@dataclass(frozen=True)
class Stage:
    """Policies placed in a model: layers `first` to `last` are scored, and tokens halt at `last`.

    Where there is more than one, each decides on the tokens of its own scope. running: so many of a prompt's last
    tokens halt in no stage.
    """

    policies: tuple[Policy, ...]
    first: int
    last: int
    running: int = 0

    @property
    def boundary(self) -> Boundary:
        """Where in layer `last` tokens halt."""
        return self.policies[0].boundary

    @property
    def tail(self) -> int:
        """So many of a prompt's last tokens stay active in any case."""
        return min(policy.ends[1] for policy in self.policies)

    @property
    def halted_states(self) -> LastState | None:
        """From which states deeper layers compute K and V of tokens halted here: see `Policy.halted_states`."""
        return self.policies[0].halted_states

    def ahead(self, policy: Policy, layer: int, layers: int) -> int:
        """How many of the `layers` layers one of the policies looks ahead at from `layer`."""
        return min(policy.layers_ahead, layers - 1 - layer) if self.first <= layer <= self.last else 0

    def joined_by(self, policy: Policy, first: int, last: int) -> "Stage | None":
        """The stage in which `policy`, placed at the same layers, decides too; None where they would meet."""
        apart = all(set(SCOPES[policy.scope]).isdisjoint(SCOPES[own.scope]) for own in self.policies)
        alike = (first, last, policy.boundary) == (self.first, self.last, self.boundary)
        dropped = policy.halted_states is None and self.halted_states is None
        return Stage((*self.policies, policy), first, last) if apart and alike and dropped else None


def place(policy: AnyPolicy, layers: int, *, vision: bool = False) -> tuple[Stage, ...]:
    """Place a policy's stages in a model of `layers` layers. vision: whether the model tells which tokens are visual.

    Raises PolicyError where a stage has no deeper layer left, two stages overlap, or too few tokens run on to tell the
    states of others from; and UnsupportedError for a scope that the model does not have.
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
                f"{part.name} scores layers {first} to {last}, but may begin at layer {after} only: start it deeper, "
                "put stages in ascending order, or sum fewer layers"
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
    return tuple(replace(stage, running=running) for stage in stages)
