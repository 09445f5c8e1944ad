"""The policies behind the tables of docs/accuracy.md and docs/ablations.md, for `deltahalt sweep --policies`.

usage: accuracy_policies.py frontier LAYERS VARIED,...
       accuracy_policies.py resembling LAYERS START,...
       accuracy_policies.py further LAYERS START
       accuracy_policies.py finding LAYERS START
       accuracy_policies.py exits LAYERS START
       accuracy_policies.py blind LAYERS START
       accuracy_policies.py signals START,...

frontier: window attention at 1.7x and 2.5x, in a model of LAYERS layers. One decision at every layer, with a look ahead
at all deeper ones; at the layers VARIED other chunks and looks ahead, and pairs of them. resembling: late interaction,
asked by 32 tokens, at every START and the same speeds; at the first with wider surroundings, and asked by 16; one layer
deeper beside attention. further: late interaction at START and the layer before, at other ratios and in other forms,
and followed by a second decision in the middle of the model. finding: late interaction as it is now used at START, and
what it owes to each of its parts. exits: late interaction at START, alone and before exits. blind: what sees no
question, at 1.5x: exits, alone and behind small updates or large keys that halt at START, and these alone, for
`sweep --query-free`. signals: every signal at every START, with what the paper ablates.
"""

import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from itertools import combinations
from typing import Any

from deltahalt.lab.evaluation.candidates import DEEPEST, HIGHEST, NARROW, Form, pair, relieved, single
from deltahalt.policies import Dense, Policy, Random
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import format_policy
from deltahalt.policies.usual import AHEAD, attended, exit_at, keyed, resembling, updated

ALL: dict[str, Any] = {"ahead": 10_000, "across": "max"}  # look ahead at every deeper layer
OTHERS: tuple[dict[str, Any], ...] = (ALL, ALL | {"chunk": 128}, ALL | {"chunk": 32}, {"ahead": 6}, {})
SPEEDUPS = (1.7, 2.5)
# Late interaction as it was first, by plain cosine: asked by 16 tokens, or by the 32 that are max-sim's own default.
plain: Form = partial(resembling, kernel=None, power=None, standardize=None)
wide: Form = partial(plain, window=None)


def looking(layers: int, settings: dict[str, Any]) -> Form:
    """Window attention with these settings, looking ahead at no more layers than there are."""

    def form(start: int, pruning_ratio: float) -> Policy:
        ahead = min(settings.get("ahead", 0), layers - 1 - start)
        return attended(start, pruning_ratio, **settings | {"ahead": ahead})

    return form


def frontier(layers: int, varied: list[int]) -> Iterator[AnyPolicy | None]:
    """Policies at 1.7x and 2.5x; None where a schedule cannot be that fast."""
    yield Dense()
    yield attended(layers // 2, 0.5)
    widest = looking(layers, ALL)
    for speedup in SPEEDUPS:
        deciding = range(layers // 8, int(DEEPEST * layers) + 1)
        every = {layer: single(layer, speedup, layers, widest) for layer in deciding}
        yield from every.values()
        yield from (single(layer, speedup, layers, looking(layers, other)) for layer in varied for other in OTHERS)
        for first, last in combinations(varied, 2):
            if (before := every[first]) is not None:
                yield pair(before, every[last] or widest(last, 0.9), speedup, layers)


def late_interaction(layers: int, starts: list[int]) -> Iterator[AnyPolicy | None]:
    """Late interaction at 1.7x and 2.5x, asked by 32 tokens, in other forms too, and beside attention."""
    first, beside = starts[0], ({"ahead": AHEAD, "similar": 1.0}, {"ahead": AHEAD, "similar": 0.3}, {"similar": 1.0})
    yield Dense()
    for speedup in SPEEDUPS:
        yield from (single(start, speedup, layers, wide) for start in starts)
        yield single(first, speedup, layers, partial(wide, kernel=257))
        yield single(first, speedup, layers, plain)
        yield from (single(first + 1, speedup, layers, looking(layers, settings)) for settings in beside)


def drawn(start: int, pruning_ratio: float) -> Policy:
    """A random draw in place of late interaction."""
    policy = wide(start, pruning_ratio)
    return Random(**{option.name: getattr(policy, option.name) for option in fields(Policy)})


def further(layers: int, starts: list[int]) -> Iterator[AnyPolicy | None]:
    """Late interaction at the only start at other ratios, with other settings, and with a second decision behind it."""
    (start,) = starts
    yield Dense()
    yield from (wide(start, ratio) for ratio in (0.15, 0.3, 0.56, 0.75))
    similar = partial(attended, similar=1.0)
    third, half = round(0.36 * layers), layers // 2
    later: list[tuple[Form, int, float]] = [
        (similar, third, 0.5),
        (similar, half, 0.5),
        (attended, half, 0.5),
        (wide, third, 0.5),
        (similar, half, 0.75),
        (similar, half, 0.33),
    ]
    settings = ({"keep_first": 1024}, {"chunk": 128}, {"window": 64}, {"window": 16, "kernel": 257})
    for speedup in SPEEDUPS:
        first = single(start, speedup, layers, wide)
        assert first is not None
        yield single(start - 1, speedup, layers, wide)
        yield from (single(start, speedup, layers, partial(wide, **other)) for other in settings)
        yield from (pair(first, form(layer, HIGHEST), speedup, layers, (share,)) for form, layer, share in later)
    yield single(start, SPEEDUPS[0], layers, drawn)


def finding(layers: int, starts: list[int]) -> Iterator[AnyPolicy | None]:
    """Late interaction as it is now used at the only start, with one part after another left out or changed."""
    (start,) = starts
    forms: tuple[Form, ...] = (
        resembling,
        partial(resembling, kernel=129),
        partial(resembling, kernel=129, power=None),
        plain,
        partial(resembling, keep_first=1024),
    )
    yield Dense()
    for speedup in SPEEDUPS:
        yield from (single(start, speedup, layers, form) for form in forms)
        yield from (single(start + 1, speedup, layers, form) for form in (resembling, plain))


def stops(layers: int) -> list[int]:
    """Five layers about 0.65 of the depth, at which tokens may stop."""
    return [round(0.65 * layers) + away for away in range(-2, 3)]


def exits(layers: int, starts: list[int]) -> Iterator[AnyPolicy | None]:
    """Late interaction at the only start, alone and with exits behind it."""
    (start,) = starts
    yield Dense()
    for speedup in SPEEDUPS:
        yield from (single(start, speedup, layers, form) for form in (resembling, NARROW))
        yield from (relieved(resembling(start, HIGHEST), exit_at(stop), speedup, layers) for stop in stops(layers))


def blind(layers: int, starts: list[int]) -> Iterator[AnyPolicy | None]:
    """Exits, alone and behind a decision at the only start, and these decisions alone, at 1.5x."""
    (start,) = starts
    yield Dense()
    yield from map(exit_at, stops(layers))
    for form in (updated, keyed):
        early = form(start, HIGHEST)
        yield from (relieved(early, exit_at(stop), 1.5, layers) for stop in stops(layers)[2:])
        yield single(start, 1.5, layers, form)


def signals(starts: list[str]) -> Iterator[str]:
    """Every signal at every start, and what the paper ablates."""
    yield "dense"
    chunked, usual = "window-attention:heads=max,chunk=64,", "pruning_ratio=0.667"
    for start in starts:
        for ratio in ("0.5", "0.667"):
            for signal in ("dash", "dash:relative=true", "dash-layer", "random", "uniform", "key-norm"):
                yield f"{signal}{',' if ':' in signal else ':'}start={start},pruning_ratio={ratio}"
            for signal in ("last-token-attention:", "window-attention:", chunked):
                yield f"{signal}start={start},pruning_ratio={ratio}"
        for signal in ("dash", "dash-layer", "random", "key-norm", "last-token-attention"):
            yield f"{signal}:chunk=64,start={start},{usual}"
        for signal in ("dash:", chunked):
            for option in (
                "boundary=attention",
                "keep_first=4",
                "keep_first=256",
                "keep_last=128",
                "keep_first=256,keep_last=128",
            ):
                yield f"{signal}start={start},{usual},{option}"
    yield from (f"dash:start={start},{usual}" for start in ("0.2", "0.3", "0.6", "0.7"))


BY_LAYERS = {
    "frontier": frontier,
    "resembling": late_interaction,
    "further": further,
    "finding": finding,
    "exits": exits,
    "blind": blind,
}


def main() -> None:
    """Print the policies, separated by blanks."""
    lists = [words.split(",") for words in sys.argv[2:]]
    if sys.argv[1:2] == ["signals"] and len(lists) == 1:
        policies = list(signals(*lists))
    elif len(lists) == 2 and sys.argv[1] in BY_LAYERS:
        (layers,), starts = ([int(word) for word in words] for words in lists)
        policies = [format_policy(policy) for policy in BY_LAYERS[sys.argv[1]](layers, starts) if policy]
    else:
        sys.exit(__doc__)
    print(*dict.fromkeys(policies))  # noqa: T201


if __name__ == "__main__":
    main()
