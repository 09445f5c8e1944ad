"""The policies behind the tables of docs/accuracy.md and docs/ablations.md, for `deltahalt sweep --policies`.

usage: accuracy_policies.py frontier LAYERS FIRST,... LAST,... VARIED,...
       accuracy_policies.py signals START,...

frontier: window attention at 1.7x and 2.5x, in a model of LAYERS layers. One decision at every layer; two decisions,
one at a layer of FIRST and one of LAST; other chunks and looks ahead at the layers VARIED. signals: every signal at
every START, with what the paper ablates.
"""

import sys
from collections.abc import Callable, Iterator

from deltahalt import parse_policy
from deltahalt.evaluation.sweep import reference_speedup

OPTIONS = "heads=max,chunk=64,keep_first=256,keep_last=128"


def attention(start: int, ratio: float, options: str = OPTIONS) -> str:
    """One decision of window attention."""
    return f"window-attention:start={start},pruning_ratio={ratio},{options}"


def solve(policy: Callable[[float], str], speedup: float, layers: int, least: float = 0.0) -> str | None:
    """The policy with the smallest ratio, in steps of 0.005, that reaches the speedup."""
    for step in range(int(200 * least) + 1, 191):
        if reference_speedup(parse_policy(policy(step / 200)), layers) >= speedup:
            return policy(step / 200)
    return None


def pair(first: int, last: int, speedup: float, layers: int) -> str | None:
    """Two decisions; the first halts half of what it would alone, or three quarters."""
    alone = solve(lambda ratio: attention(first, ratio), speedup, layers)
    for share in (0.5, 0.75) if alone else ():
        ratio = round(share * parse_policy(alone).stages[0].pruning_ratio, 3)
        begin = attention(first, ratio)
        both = solve(lambda later, begin=begin: f"{begin}+{attention(last, later)}", speedup, layers, ratio)
        if both:
            return both
    return None


def frontier(layers: int, firsts: list[int], lasts: list[int], varied: list[int]) -> Iterator[str | None]:
    """Policies at 1.7x and 2.5x."""
    yield "dense"
    yield attention(layers // 2, 0.5)
    for speedup in (1.7, 2.5):
        for layer in range(layers // 8, int(0.62 * layers) + 1):
            yield solve(lambda ratio, layer=layer: attention(layer, ratio), speedup, layers)
        yield from (pair(first, last, speedup, layers) for first in firsts for last in lasts if first < last)
        for layer in varied:
            chunks = [OPTIONS.replace("64", str(chunk)) for chunk in (32, 128)]
            looks = [f"{OPTIONS},ahead={ahead}" for ahead in (6, layers - 1 - layer)]
            for options in (*chunks, *looks):
                yield solve(
                    lambda ratio, layer=layer, options=options: attention(layer, ratio, options), speedup, layers
                )


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


def main() -> None:
    """Print the policies, separated by blanks."""
    lists = [words.split(",") for words in sys.argv[2:]]
    if sys.argv[1:2] == ["signals"] and len(lists) == 1:
        policies = list(signals(*lists))
    elif sys.argv[1:2] == ["frontier"] and len(lists) == 4:
        (layers,), firsts, lasts, varied = ([int(word) for word in words] for words in lists)
        policies = [policy for policy in frontier(layers, firsts, lasts, varied) if policy]
    else:
        sys.exit(__doc__)
    print(*dict.fromkeys(policies))  # noqa: T201


if __name__ == "__main__":
    main()
