"""The policies that calibration tries: early decisions at a target speedup, in one step or two, and exits."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations

from deltahalt.evaluation.sweep import reference_speedup
from deltahalt.policies import parse_policy
from deltahalt.profile import AHEAD, EARLY, attended, exit_at, keyed, resembling, updated

Form = Callable[..., str]  # of a policy of one decision, given `start` and `pruning_ratio`
DEEPEST = 0.62  # of the depth: a first decision later than that saves too little
HIGHEST = 0.95  # ratio that a stage may have
EXITS = 0.5, 0.8  # of the depth: between them tokens may stop
EXIT = 0.65  # of the depth: at the nearest layer and those beside it tokens usually stop
PAIRED = 3  # layers that are tried in pairs, and exits that are tried behind other decisions


@dataclass(frozen=True)
class Search:
    """What kind of early decisions are tried.

    forms: tried at every layer (the first), and usual where tokens cannot stop later. early: of the depth, the part
    after which they usually decide. others: forms tried where the first did well. looking: so, at layers that see the
    whole prompt, after a look ahead.
    """

    forms: tuple[Form, ...]
    early: int
    others: tuple[Form, ...]
    looking: tuple[Form, ...] = ()


NARROW = partial(resembling, kernel=129)  # which width is better differs by model
ASKED = Search(
    forms=(resembling, NARROW),
    early=EARLY,
    others=(partial(resembling, kernel=257), NARROW, partial(resembling, window=32)),
    looking=(attended, partial(attended, similar=1.0)),
)
BLIND = Search(forms=(updated,), early=7, others=(keyed,))  # to a question that is not known yet


def deciding_layers(depth: int) -> list[int]:
    """Layers of `depth` that may decide: from the first few to a little past the middle."""
    return list(range(depth // 10, int(DEEPEST * depth) + 1))


def stopping_layers(windows: Sequence[int | None]) -> list[int]:
    """Layers at which tokens may stop: none where some layers do not see the whole prompt."""
    depth = len(windows)
    return [] if any(windows) else list(range(int(EXITS[0] * depth), int(EXITS[1] * depth)))


def usual_layer(layers: Sequence[int], depth: int, search: Search = ASKED) -> int:
    """Of `layers` the one where early decisions are usually taken."""
    return min(layers, key=lambda layer: abs(layer - depth / search.early))


def usual_policies(
    layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> list[str]:
    """The usual policies that can give `target`, deciding at one of `layers`.

    Where tokens can stop, the first form before each of the usual exits; else every form alone.
    """
    usual = round(EXIT * len(windows))
    exits = _exits(layers, target, windows, search).items()
    layer = usual_layer(layers, len(windows), search)
    alone = (single(layer, target, len(windows), form) for form in search.forms)
    return [policy for stop, policy in exits if abs(stop - usual) <= 1] or [policy for policy in alone if policy]


def first_field(layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search) -> list[str]:
    """What is tried first for `target`: one decision at each of `layers`, and the usual one before every exit."""
    alone = (single(layer, target, len(windows), search.forms[0]) for layer in layers)
    return [*(policy for policy in alone if policy), *_exits(layers, target, windows, search).values()]


def varied(
    best: Sequence[str], target: float, windows: Sequence[int | None], search: Search = ASKED
) -> Iterator[str | None]:
    """What else to try where those of a first field that are `best`, best first, did well.

    Other forms for each single decision, and others yet at the nearest layer that sees the whole prompt; the first
    `PAIRED` of them in pairs, too; and behind these and other forms the best exits. windows: how far back each layer
    attends; None for all. None where a schedule cannot be that fast.
    """
    depth = len(windows)
    alone = [policy for policy in best if exit_of(policy) is None]
    yield from (single(layer_of(policy), target, depth, other) for policy in alone for other in search.others)
    for seeing in {_seeing(layer_of(policy), windows): None for policy in alone if search.looking}:
        if seeing is not None:
            ahead = min(AHEAD, depth - 1 - seeing)
            yield from (single(seeing, target, depth, partial(form, ahead=ahead)) for form in search.looking)
    few = alone[:PAIRED]
    yield from (pair(first, last, target, depth) for first, last in permutations(few, 2))
    exits = [layer for policy in best if (layer := exit_of(policy)) is not None][:PAIRED]
    layer = usual_layer(deciding_layers(depth), depth, search)
    others = [policy for form in search.others if (policy := single(layer, target, depth, form))]
    yield from (exiting(policy, layer, target, depth) for layer in exits for policy in (*others, *few))


def single(layer: int, target: float, depth: int, form: Form = resembling) -> str | None:
    """One decision at `layer` with the ratio that gives `target`, in a model `depth` layers deep; None if none does."""
    return _least(partial(form, layer), _ratios(), target, depth)


def layer_of(policy: str) -> int:
    """The layer at which a policy of one decision takes it."""
    (stage,) = parse_policy(policy).stages
    assert isinstance(stage.start, int)
    return stage.start


def exit_of(policy: str) -> int | None:
    """The layer at which all tokens but the latest stop and serve; None where none do."""
    stages = parse_policy(policy).stages
    if not stages or not stages[-1].serves_halted:
        return None
    assert isinstance(stages[-1].start, int)
    return stages[-1].start


def pair(first: str, last: str, target: float, depth: int, shares: Sequence[float] = (0.5, 0.75)) -> str | None:
    """Two decisions that give `target` together, at the layers of two single ones; None if none do.

    The first halts a share of what it would alone, the earliest of `shares` with which the second can do the rest.
    """
    before, after = parse_policy(first).stages[0], parse_policy(last).stages[0]
    if before.start >= after.start:
        return None
    for share in shares:
        ratio = round(share * before.pruning_ratio, 3)
        both = _least(partial(_join, _with_ratio(first, ratio), last), _ratios(ratio), target, depth)
        if both is not None:
            return both
    return None


def exiting(policy: str, layer: int, target: float, depth: int) -> str | None:
    """`policy` with an exit at `layer`, and all its ratios so much smaller that both give `target`.

    The exit alone where that is fast enough. None where a decision of `policy` is no earlier.
    """
    stop = exit_at(layer)
    if reference_speedup(parse_policy(stop), depth) >= target:
        return stop
    if any(stage.start >= layer for stage in parse_policy(policy).stages):
        return None
    return _least(lambda share: f"{_scaled(policy, share)}+{stop}", [n / 200 for n in range(1, 201)], target, depth)


def forgotten_share(policy: str) -> float:
    """Share of the eligible tokens that the deepest layers cannot read."""
    return max((stage.pruning_ratio for stage in parse_policy(policy).stages if not stage.serves_halted), default=0.0)


def looks_ahead(policy: str) -> int:
    """How many layers all decisions look ahead at."""
    return sum(stage.layers_ahead for stage in parse_policy(policy).stages)


def _exits(layers: Sequence[int], target: float, windows: Sequence[int | None], search: Search) -> dict[int, str]:
    """By layer at which tokens may stop, the usual early decision, at one of `layers`, before that exit."""
    depth = len(windows)
    early = search.forms[0](usual_layer(layers, depth, search), HIGHEST)
    exits = {layer: exiting(early, layer, target, depth) for layer in stopping_layers(windows)}
    return {layer: policy for layer, policy in exits.items() if policy}


def _seeing(layer: int, windows: Sequence[int | None]) -> int | None:
    """The first layer from `layer` on that sees the whole prompt and has one behind it, if any."""
    return next((one for one in range(layer, len(windows) - 1) if windows[one] is None), None)


def _join(first: str, last: str, ratio: float) -> str:
    return f"{first}+{_with_ratio(last, ratio)}"


def _with_ratio(policy: str, ratio: float) -> str:
    return _RATIO.sub(f"pruning_ratio={ratio}", policy)


def _scaled(policy: str, share: float) -> str:
    return _RATIO.sub(lambda found: f"pruning_ratio={round(share * float(found[1]), 3)}", policy)


_RATIO = re.compile(r"pruning_ratio=([\d.]+)")


def _ratios(lowest: float = 0.0) -> list[float]:
    return [step / 200 for step in range(int(lowest * 200) + 1, int(HIGHEST * 200) + 1)]


def _least(policy: Callable[[float], str], values: Sequence[float], target: float, depth: int) -> str | None:
    """`policy` with the smallest of ascending `values` whose schedule is at least as fast as `target`."""
    at = bisect_left(values, target, key=lambda value: reference_speedup(parse_policy(policy(value)), depth))
    return policy(values[at]) if at < len(values) else None
