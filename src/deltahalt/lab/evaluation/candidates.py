"""The policies that calibration tries, at a target speedup: early decisions in one or two steps, and a late one."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from deltahalt.lab.evaluation.sweep import reference_speedup
from deltahalt.policies.base import AnyPolicy, Policy, Progressive
from deltahalt.policies.text import joined, override
from deltahalt.policies.usual import AHEAD, EARLY, attended, exit_at, keyed, resembling, updated

Form = Callable[..., Policy]  # a policy of one decision, given `start` and `pruning_ratio`
DEEPEST = 0.62  # of the depth: a first decision later than that saves too little
HIGHEST = 0.95  # ratio that a stage may have
LATE = 2 / 3  # of the depth: where a further decision may relieve the others
LATE_RATIO = 0.8  # what it halts
PAIRED = 3  # layers that are tried in pairs, and with a late decision
EXITS = 0.5, 0.8  # of the depth: between them tokens may stop


@dataclass(frozen=True)
class Search:
    """What is tried.

    first: the form of early decisions, at every layer. early: the part of the depth after which the usual one is taken.
    usual: its forms, one of which is chosen unless another policy is clearly better. others: further forms, where the
    first does well. looking: the same after a look ahead, at layers that see the whole prompt. exits: whether the late
    decision is an exit, at every layer where tokens can stop; one of them behind the usual early decision is then
    what is usual. Else it is late interaction again.
    """

    first: Form
    early: int
    usual: tuple[Form, ...] = ()
    others: tuple[Form, ...] = ()
    looking: tuple[Form, ...] = ()
    exits: bool = False


NARROW = partial(resembling, kernel=129)  # which width is better differs by model
ASKED = Search(
    first=resembling,
    early=EARLY,
    usual=(resembling, NARROW),
    others=(partial(resembling, kernel=257), NARROW, partial(resembling, window=32)),
    looking=(attended, partial(attended, similar=1.0)),
)
BLIND = Search(first=updated, early=7, others=(keyed,), exits=True)  # to a question that is not known yet


def deciding_layers(depth: int) -> list[int]:
    """Layers of `depth` that may decide: from the first few to a little past the middle."""
    return list(range(depth // 10, int(DEEPEST * depth) + 1))


def stopping_layers(windows: Sequence[int | None]) -> list[int]:
    """Layers at which tokens can stop: none where some layers do not see the whole prompt."""
    depth = len(windows)
    return [] if any(windows) else list(range(int(EXITS[0] * depth), int(EXITS[1] * depth)))


def usual_layer(layers: Sequence[int], depth: int, search: Search = ASKED) -> int:
    """Of `layers` the one where the usual early decision is taken."""
    return min(layers, key=lambda layer: abs(layer - depth / search.early))


def usual_policies(
    layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> list[AnyPolicy]:
    """The usual policies at the usual one of `layers`, alone or before every exit, those that can give `target`."""
    layer = usual_layer(layers, len(windows), search)
    alone = [policy for form in search.usual if (policy := single(layer, target, len(windows), form))]
    return [*alone, *_exits(layer, target, windows, search)]


def first_field(
    layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> Iterator[AnyPolicy | None]:
    """What is tried first: one decision at each of `layers`, and the usual one before every exit."""
    yield from (single(layer, target, len(windows), search.first) for layer in layers)
    yield from _exits(usual_layer(layers, len(windows), search), target, windows, search)


def varied(
    best: Sequence[AnyPolicy], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> Iterator[AnyPolicy | None]:
    """What else to try where those of a first field that give `target` did well, `best` first.

    Other forms of each single decision, and others yet at the nearest layer that sees the whole prompt; for the first
    `PAIRED` of them also two decisions, and a further late one: the best exits, or another halting. windows: how far
    back each layer attends; None for all. None where a schedule cannot be that fast.
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
    late = exits[:PAIRED] if search.exits else [resembling(int(LATE * depth), LATE_RATIO)]
    yield from (relieved(policy, further, target, depth) for further in late for policy in (*few, *pairs))


def single(layer: int, target: float, depth: int, form: Form = resembling) -> AnyPolicy | None:
    """One decision at `layer` with the ratio that gives `target`, in a model `depth` layers deep; None if none does."""
    return _least(partial(form, layer), _ratios(), target, depth)


def layer_of(policy: AnyPolicy) -> int:
    """The layer at which a policy of one decision takes it."""
    (stage,) = policy.stages
    assert isinstance(stage.start, int)
    return stage.start


def pair(
    first: AnyPolicy, last: AnyPolicy, target: float, depth: int, shares: Sequence[float] = (0.5, 0.75)
) -> AnyPolicy | None:
    """Two decisions that give `target` together, at the layers of two single ones; None if none do.

    The first halts a share of what it would alone, the earliest of `shares` with which the second can do the rest.
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
    """The layer at which all tokens but the latest stop, with K/V in deeper layers; None where they do not."""
    *_, last = policy.stages
    assert isinstance(last.start, int)
    return last.start if last.halted_states is not None else None


def relieved(policy: AnyPolicy, further: AnyPolicy, target: float, depth: int) -> AnyPolicy | None:
    """`policy` with a `further` decision after it, and all its ratios so much smaller that both give `target`.

    `further` alone where that is fast enough; None where `policy` halts as many, or decides no earlier.
    """
    (late,), stages = further.stages, policy.stages
    if stages[-1].pruning_ratio >= late.pruning_ratio or stages[-1].start >= late.start:
        return None
    if reference_speedup(late, depth) >= target:
        return further
    shares = [n / 200 for n in range(1, 201)]
    return _least(lambda share: Progressive([*_scaled(stages, share), late]), shares, target, depth)


def forgotten_share(policy: AnyPolicy) -> float:
    """Share of the eligible tokens that the deepest layers cannot read."""
    return max((stage.pruning_ratio for stage in policy.stages if stage.halted_states is None), default=0.0)


def looks_ahead(policy: AnyPolicy) -> int:
    """How many layers all decisions look ahead at."""
    return sum(stage.layers_ahead for stage in policy.stages)


def _exits(layer: int, target: float, windows: Sequence[int | None], search: Search) -> Iterator[AnyPolicy]:
    """The first form's decision at `layer` before every exit that is tried."""
    stops = stopping_layers(windows) if search.exits else ()
    early = search.first(layer, HIGHEST)
    yield from (policy for stop in stops if (policy := relieved(early, exit_at(stop), target, len(windows))))


def _seeing(layer: int, windows: Sequence[int | None]) -> int | None:
    """The first layer from `layer` on that sees the whole prompt and has one behind it, if any."""
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
    """`policy` with the smallest of ascending `values` whose schedule is at least as fast as `target`."""
    at = bisect_left(values, target, key=lambda value: reference_speedup(policy(value), depth))
    return policy(values[at]) if at < len(values) else None
