"""The policies that calibration tries: window attention at a target speedup, in one to three decisions."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.evaluation.sweep import reference_speedup
from deltahalt.families import family_of
from deltahalt.policies import parse_policy
from deltahalt.profile import AHEAD, attention_policy

Settings = dict[str, Any]  # options of window attention
USUAL: Settings = {"ahead": AHEAD}
ALL: Settings = {"ahead": 10_000, "across": "max"}  # look ahead at every deeper layer
OTHERS: tuple[Settings, ...] = (ALL, ALL | {"chunk": 128}, ALL | {"chunk": 32}, {"ahead": 6}, {})
DEEPEST = 0.62  # of the depth: a first decision later than that saves too little
HIGHEST = 0.95  # ratio that a stage may have
LATE = 2 / 3  # of the depth: where a further decision may relieve the others
LATE_RATIO = 0.8  # what it halts
PAIRED = 3  # layers that are tried in pairs, and with a late decision


def deciding_layers(decoder: Any) -> list[int]:
    """Layers that may decide: those that see the whole prompt, from the first few to a little past half depth.

    Raises UnsupportedError if there is none.
    """
    windows = family_of(decoder.config).windows(decoder.config)
    deepest = int(DEEPEST * len(windows))
    layers = [layer for layer in range(len(windows) // 8, deepest + 1) if windows[layer] is None]
    if not layers:
        raise UnsupportedError("no layer of this model sees the whole prompt, so attention cannot be asked there")
    return layers


def usual_layer(layers: Sequence[int], depth: int) -> int:
    """Of `layers` the one where the usual policy decides: the nearest to a seventh of the depth."""
    return min(layers, key=lambda layer: abs(layer - depth / 7))


def late_layer(decoder: Any) -> int | None:
    """The first layer from `LATE` of the depth on that sees the whole prompt and has one to save behind it, if any."""
    windows = family_of(decoder.config).windows(decoder.config)
    return next((layer for layer in range(int(LATE * len(windows)), len(windows) - 1) if windows[layer] is None), None)


def varied(best: Sequence[str], target: float, depth: int, late: int | None) -> Iterator[str | None]:
    """What else to try at the layers of `best`, single decisions that give `target`, best first.

    Other chunks and looks ahead for each; for the first `PAIRED` also two decisions, and a further one at layer `late`.
    None where a schedule cannot be that fast.
    """
    yield from (single(layer_of(policy), target, depth, other) for policy in best for other in OTHERS)
    few = best[:PAIRED]
    pairs = [both for first, last in permutations(few, 2) if (both := pair(first, last, target, depth))]
    yield from pairs
    if late is not None:
        yield from (relieved(policy, late, target, depth) for policy in (*few, *pairs))


def single(layer: int, target: float, depth: int, settings: Settings) -> str | None:
    """One decision at `layer` with the ratio that gives `target`, in a model `depth` layers deep; None if none does."""
    return _least(partial(_decision, layer, depth, settings), _ratios(), target, depth)


def layer_of(policy: str) -> int:
    """The layer at which a policy of one decision takes it."""
    (stage,) = parse_policy(policy).stages
    assert isinstance(stage.start, int)
    return stage.start


def pair(first: str, last: str, target: float, depth: int) -> str | None:
    """Two decisions that give `target` together, at the layers of two single ones; None if none do.

    The first halts half of what it would alone, or three quarters where half is too little; the second does the rest.
    """
    before, after = parse_policy(first).stages[0], parse_policy(last).stages[0]
    if before.start >= after.start:
        return None
    for share in (0.5, 0.75):
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
    further = _decision(late, depth, USUAL, LATE_RATIO)
    return _least(lambda share: f"{_scaled(policy, share)}+{further}", [n / 100 for n in range(1, 101)], target, depth)


def halted_share(policy: str) -> float:
    """Share of the eligible tokens that have halted after the last decision."""
    stages = parse_policy(policy).stages
    return stages[-1].pruning_ratio if stages else 0.0


def looks_ahead(policy: str) -> int:
    """How many layers all decisions look ahead at."""
    return sum(stage.layers_ahead for stage in parse_policy(policy).stages)


def _decision(layer: int, depth: int, settings: Settings, ratio: float) -> str:
    ahead = min(settings.get("ahead", 0), depth - 1 - layer)
    return attention_policy(layer, ratio, **settings | {"ahead": ahead})


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
