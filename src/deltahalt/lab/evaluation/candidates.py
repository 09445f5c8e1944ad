"""The policies that calibration tries for a target speedup: one or two early decisions, and a late one."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from deltahalt.lab.evaluation.sweep import reference_speedup
from deltahalt.policies.base import AnyPolicy, Policy, Progressive
from deltahalt.policies.text import joined, override
from deltahalt.policies.usual import AHEAD, EARLY, attended, exit_at, keyed, matched, resembling, updated

Form = Callable[..., Policy]  # makes a policy with one decision from `start` and `pruning_ratio`
DEEPEST = 0.62  # share of the depth: a first decision at a deeper layer saves too little
HIGHEST = 0.95  # largest pruning ratio of a stage
LATE = 2 / 3  # share of the depth: the layer of a late decision, which lets the early ones halt less
LATE_RATIO = 0.8  # pruning ratio of the late decision
PAIRED = 3  # number of best layers that are tried in pairs, and with a late decision
EXITS = 0.5, 0.8  # shares of the depth between which exits are tried


@dataclass(frozen=True)
class Search:
    """The forms of policies that are tried.

    first: form of the early decision that is tried at every layer.
    early: the usual early decision is taken at layer depth / early.
    usual: forms of the usual early decision. One of these policies is chosen unless another is clearly better.
    others: further forms, tried at the layers where the first one is best.
    looking: forms with a look-ahead, tried at layers that attend to the whole prompt.
    exits: whether the late decision is an exit, tried at every layer where tokens can exit. The usual policies are then
        the usual early decision followed by an exit. If False, the late decision is late interaction.
    """

    first: Form
    early: int
    usual: tuple[Form, ...] = ()
    others: tuple[Form, ...] = ()
    looking: tuple[Form, ...] = ()
    exits: bool = False


ASKED = Search(
    first=matched,
    early=EARLY,
    usual=(matched,),
    others=(resembling, partial(resembling, kernel=129)),
    looking=(partial(attended, similar=1.0),),
)
BLIND = Search(first=updated, early=7, others=(keyed,), exits=True)  # for prompts whose question is not known yet


def deciding_layers(depth: int) -> list[int]:
    """Return the layers at which a first decision is tried: from a tenth of `depth` to a little past the middle."""
    return list(range(depth // 10, int(DEEPEST * depth) + 1))


def stopping_layers(windows: Sequence[int | None]) -> list[int]:
    """Return the layers at which tokens can exit: none if some layers have a sliding window."""
    depth = len(windows)
    return [] if any(windows) else list(range(int(EXITS[0] * depth), int(EXITS[1] * depth)))


def usual_layer(layers: Sequence[int], depth: int, search: Search = ASKED) -> int:
    """Return the one of `layers` at which the usual early decision is taken."""
    return min(layers, key=lambda layer: abs(layer - depth / search.early))


def usual_policies(
    layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> list[AnyPolicy]:
    """Return the usual policies that reach `target`: at the usual one of `layers`, alone or before every exit."""
    layer = usual_layer(layers, len(windows), search)
    alone = [policy for form in search.usual if (policy := single(layer, target, len(windows), form))]
    return [*alone, *_exits(layer, target, windows, search)]


def first_field(
    layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> Iterator[AnyPolicy | None]:
    """Yield the policies to try first: one decision at each of `layers`, and the usual one before every exit."""
    yield from (single(layer, target, len(windows), search.first) for layer in layers)
    yield from _exits(usual_layer(layers, len(windows), search), target, windows, search)


def varied(
    best: Sequence[AnyPolicy], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> Iterator[AnyPolicy | None]:
    """Yield variants of the best policies of a first field, at the same `target` speedup; None for one that is slower.

    Each single decision is tried in other forms, and with a look-ahead at the nearest layer that attends to the whole
    prompt. The first `PAIRED` are also tried in pairs, and with a late decision: the best exits, or a late halting.

    best: policies of the first field, the best one first. windows: for each layer, the number of latest tokens that it
    attends to; None for all.
    """
    depth = len(windows)
    alone = [policy for policy in best if exit_of(policy) is None]
    yield from (single(layer_of(policy), target, depth, other) for policy in alone for other in search.others)
    for seeing in {_seeing(layer_of(policy), windows): None for policy in alone if search.looking}:
        if seeing is not None:
            ahead = min(AHEAD, depth - 1 - seeing)
            yield from (single(seeing, target, depth, partial(form, ahead=ahead)) for form in search.looking)
    few = alone[:PAIRED]
    pairs = [both for first, last in permutations(few, 2) if (both := pair(first, last, target, depth))]
    yield from pairs
    exits = [exit_at(layer) for policy in best if (layer := exit_of(policy)) is not None]
    late = exits[:PAIRED] if search.exits else [matched(int(LATE * depth), LATE_RATIO)]
    yield from (relieved(policy, further, target, depth) for further in late for policy in (*few, *pairs))


def single(layer: int, target: float, depth: int, form: Form = matched) -> AnyPolicy | None:
    """Return one decision at `layer` with the lowest ratio that reaches `target`; None if none does."""
    return _least(partial(form, layer), _ratios(), target, depth)


def layer_of(policy: AnyPolicy) -> int:
    """Return the layer at which a policy with one decision takes it."""
    (stage,) = policy.stages
    assert isinstance(stage.start, int)
    return stage.start


def pair(
    first: AnyPolicy, last: AnyPolicy, target: float, depth: int, shares: Sequence[float] = (0.5, 0.75)
) -> AnyPolicy | None:
    """Return two decisions, at the layers of two single ones, that reach `target` together; None if none do.

    The first keeps a share of its ratio: the first of `shares` with which the second can still reach `target`.
    """
    (before,), (after,) = first.stages, last.stages
    if before.start >= after.start:
        return None
    for share in shares:
        ratio = round(share * before.pruning_ratio, 3)
        both = _least(partial(_join, override(before, pruning_ratio=ratio), after), _ratios(ratio), target, depth)
        if both is not None:
            return both
    return None


def exit_of(policy: AnyPolicy) -> int | None:
    """Return the layer of a policy's exit, at which all but the latest tokens stop; None if it has no exit."""
    *_, last = policy.stages
    assert isinstance(last.start, int)
    return last.start if last.halted_states is not None else None


def relieved(policy: AnyPolicy, further: AnyPolicy, target: float, depth: int) -> AnyPolicy | None:
    """Return `policy` followed by the decision `further`, its own ratios scaled down until both just reach `target`.

    The result is `further` alone if that is fast enough. It is None if `policy` does not decide earlier than `further`,
    or halts as many tokens.
    """
    (late,), stages = further.stages, policy.stages
    if stages[-1].pruning_ratio >= late.pruning_ratio or stages[-1].start >= late.start:
        return None
    if reference_speedup(late, depth) >= target:
        return further
    shares = [n / 200 for n in range(1, 201)]
    return _least(lambda share: Progressive([*_scaled(stages, share), late]), shares, target, depth)


def forgotten_share(policy: AnyPolicy) -> float:
    """Return the share of the eligible tokens whose K/V the deepest layers do not have."""
    return max((stage.pruning_ratio for stage in policy.stages if stage.halted_states is None), default=0.0)


def looks_ahead(policy: AnyPolicy) -> int:
    """Return the number of layers in the look-aheads of all decisions."""
    return sum(stage.layers_ahead for stage in policy.stages)


def _exits(layer: int, target: float, windows: Sequence[int | None], search: Search) -> Iterator[AnyPolicy]:
    """Yield the decision of the first form at `layer`, followed by each exit that is tried."""
    stops = stopping_layers(windows) if search.exits else ()
    early = search.first(layer, HIGHEST)
    yield from (policy for stop in stops if (policy := relieved(early, exit_at(stop), target, len(windows))))


def _seeing(layer: int, windows: Sequence[int | None]) -> int | None:
    """Return the first layer at or after `layer` that attends to the whole prompt; None if only the last one does."""
    return next((one for one in range(layer, len(windows) - 1) if windows[one] is None), None)


def _join(first: AnyPolicy, last: AnyPolicy, ratio: float) -> AnyPolicy:
    return joined([*first.stages, *override(last, pruning_ratio=ratio).stages])


def _scaled(stages: Sequence[Policy], share: float) -> list[Policy]:
    return [replace(stage, pruning_ratio=round(share * stage.pruning_ratio, 3)) for stage in stages]


def _ratios(lowest: float = 0.0) -> list[float]:
    return [step / 200 for step in range(int(lowest * 200) + 1, int(HIGHEST * 200) + 1)]


def _least(
    policy: Callable[[float], AnyPolicy], values: Sequence[float], target: float, depth: int
) -> AnyPolicy | None:
    """Return `policy` of the smallest of ascending `values` whose speedup is at least `target`; None if none is."""
    at = bisect_left(values, target, key=lambda value: reference_speedup(policy(value), depth))
    return policy(values[at]) if at < len(values) else None
