"""The policies that calibration tries: late interaction and attention at a target speedup, in one to three steps."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations

from deltahalt.evaluation.sweep import reference_speedup
from deltahalt.policies import parse_policy
from deltahalt.profile import AHEAD, EARLY, attended, resembling

Form = Callable[..., str]  # of a policy of one decision, given `start` and `pruning_ratio`
USUAL: tuple[Form, ...] = (resembling, partial(resembling, kernel=129))  # which width is better differs by model
OTHERS: tuple[Form, ...] = (
    partial(resembling, kernel=257),
    *USUAL[1:],
    partial(resembling, window=32),
)
ATTENDED: tuple[Form, ...] = (attended, partial(attended, similar=1.0))  # after a look ahead at `AHEAD` layers
DEEPEST = 0.62  # of the depth: a first decision later than that saves too little
HIGHEST = 0.95  # ratio that a stage may have
LATE = 2 / 3  # of the depth: where a further decision may relieve the others
LATE_RATIO = 0.8  # what it halts
PAIRED = 3  # layers that are tried in pairs, and with a late decision


def deciding_layers(depth: int) -> list[int]:
    """Layers of `depth` that may decide: from the first few to a little past the middle."""
    return list(range(depth // 10, int(DEEPEST * depth) + 1))


def usual_layer(layers: Sequence[int], depth: int) -> int:
    """Of `layers` the one where the usual policies decide: the nearest to a twelfth of the depth."""
    return min(layers, key=lambda layer: abs(layer - depth / EARLY))


def usual_policies(layers: Sequence[int], target: float, depth: int) -> list[str]:
    """The usual policies at the usual one of `layers`, those of them that can give `target`."""
    layer = usual_layer(layers, depth)
    return [policy for form in USUAL if (policy := single(layer, target, depth, form))]


def varied(best: Sequence[str], target: float, windows: Sequence[int | None]) -> Iterator[str | None]:
    """What else to try at the layers of `best`, single decisions that give `target`, best first.

    Other surroundings and windows for each, and attention at the nearest layer that sees the whole prompt; for the
    first `PAIRED` also two decisions, and a further late one. windows: how far back each layer attends; None for all.
    None where a schedule cannot be that fast.
    """
    depth = len(windows)
    yield from (single(layer_of(policy), target, depth, other) for policy in best for other in OTHERS)
    for seeing in {_seeing(layer_of(policy), windows): None for policy in best}:
        if seeing is not None:
            ahead = min(AHEAD, depth - 1 - seeing)
            yield from (single(seeing, target, depth, partial(form, ahead=ahead)) for form in ATTENDED)
    few = best[:PAIRED]
    pairs = [both for first, last in permutations(few, 2) if (both := pair(first, last, target, depth))]
    yield from pairs
    yield from (relieved(policy, int(LATE * depth), target, depth) for policy in (*few, *pairs))


def single(layer: int, target: float, depth: int, form: Form = resembling) -> str | None:
    """One decision at `layer` with the ratio that gives `target`, in a model `depth` layers deep; None if none does."""
    return _least(partial(form, layer), _ratios(), target, depth)


def layer_of(policy: str) -> int:
    """The layer at which a policy of one decision takes it."""
    (stage,) = parse_policy(policy).stages
    assert isinstance(stage.start, int)
    return stage.start


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


def relieved(policy: str, late: int, target: float, depth: int) -> str | None:
    """`policy` with a further decision at layer `late`, and all its ratios so much smaller that both give `target`.

    None where it halts as many before.
    """
    last = parse_policy(policy).stages[-1].pruning_ratio
    if last >= LATE_RATIO:
        return None
    further = resembling(late, LATE_RATIO)
    return _least(lambda share: f"{_scaled(policy, share)}+{further}", [n / 100 for n in range(1, 101)], target, depth)


def halted_share(policy: str) -> float:
    """Share of the eligible tokens that have halted after the last decision."""
    stages = parse_policy(policy).stages
    return stages[-1].pruning_ratio if stages else 0.0


def looks_ahead(policy: str) -> int:
    """How many layers all decisions look ahead at."""
    return sum(stage.layers_ahead for stage in parse_policy(policy).stages)


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
