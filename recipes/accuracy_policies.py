"""The policies behind the tables of docs/accuracy.md and docs/ablations.md, for `deltahalt sweep --policies`.

usage: accuracy_policies.py frontier LAYERS VARIED,...
       accuracy_policies.py signals START,...

frontier: window attention at 1.7x and 2.5x, in a model of LAYERS layers. One decision at every layer that calibration
would try, with a look ahead at all deeper ones; at the layers VARIED what else calibration would try, and pairs of
them. signals: every signal at every START, with what the paper ablates.
"""

import sys
from collections.abc import Iterator
from itertools import combinations

from deltahalt.evaluation.candidates import ALL, DEEPEST, OTHERS, pair, single
from deltahalt.profile import attention_policy


def frontier(layers: int, varied: list[int]) -> Iterator[str | None]:
    """Policies at 1.7x and 2.5x; None where a schedule cannot be that fast."""
    yield "dense"
    yield attention_policy(layers // 2, 0.5)
    for speedup in (1.7, 2.5):
        every = {layer: single(layer, speedup, layers, ALL) for layer in range(layers // 8, int(DEEPEST * layers) + 1)}
        yield from every.values()
        yield from (single(layer, speedup, layers, other) for layer in varied for other in OTHERS)
        for first, last in combinations(varied, 2):
            if every[first]:
                yield pair(every[first], every[last] or attention_policy(last, 0.9, **ALL), speedup, layers)


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
    elif sys.argv[1:2] == ["frontier"] and len(lists) == 2:
        (layers,), varied = ([int(word) for word in words] for words in lists)
        policies = [policy for policy in frontier(layers, varied) if policy]
    else:
        sys.exit(__doc__)
    print(*dict.fromkeys(policies))  # noqa: T201


if __name__ == "__main__":
    main()
