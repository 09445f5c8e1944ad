"""A row of the bench: one policy against the full model, on prompts of one length and batch size."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

from deltahalt.lab.rows.base import RanRow


@dataclass(frozen=True)
class Cost:
    """What a run took; or, as a gain, how many times less than the full model (above 1 is better).

    first_token: seconds from text to the first new token, reading the text included; None where there was no text.
    prefill: seconds from token ids to the first new token. generation: seconds of all later tokens; None if there are
    none. total: seconds of all of it. flops: true FLOPs of the prefill. kv_bytes: K and V after the prefill.
    peak_bytes: most GPU memory that was held, weights included; None on a CPU.
    """

    first_token: float | None
    prefill: float
    generation: float | None
    total: float
    flops: float
    kv_bytes: float
    peak_bytes: float | None


@dataclass(frozen=True)
class BenchRow(RanRow):
    """A policy and the full model on the same `batch` prompts of `prompt` tokens, `new_tokens` generated after each.

    full, halted: medians over `repeats` runs. gain: medians of full / halted over pairs of runs in turn, so drift
    cancels. overhead: what the engine adds to the prefill with nothing halted, as a share of it. share: how much of
    the bound, the gain in FLOPs, the prefill reaches.
    """

    kind: ClassVar[str] = "bench"
    signed: ClassVar[frozenset[str]] = frozenset({"overhead", "seed"})

    model: str
    policy: str
    prompt: int
    batch: int
    new_tokens: int
    full: Cost
    halted: Cost
    gain: Cost
    overhead: float
    share: float
    repeats: int
    seed: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "BenchRow":
        return cls(**fields | {name: Cost(**fields[name]) for name in ("full", "halted", "gain")})

    def throughput(self, cost: Cost) -> float:
        """Tokens a second, of prompts and answers together."""
        return self.batch * (self.prompt + self.new_tokens) / cost.total


def medians(runs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*(_all_or_none(statistics.median, figures) for figures in zip(*map(astuple, runs), strict=True)))


def median_gains(full: Sequence[Cost], halted: Sequence[Cost]) -> Cost:
    """The median over pairs of runs of each figure's ratio."""
    return medians([_gain(*pair) for pair in zip(full, halted, strict=True)])


def _gain(full: Cost, halted: Cost) -> Cost:
    pairs = zip(astuple(full), astuple(halted), strict=True)
    return Cost(*(_all_or_none(lambda pair: pair[0] / pair[1], pair) for pair in pairs))


def _all_or_none(combine: Callable[[Any], Any], figures: Sequence[Any]) -> Any:
    return None if None in figures else combine(figures)
