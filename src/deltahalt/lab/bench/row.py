"""A row of the bench: a policy compared with the full model, on prompts of one length and batch size."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

from deltahalt.lab.rows.base import RanRow


@dataclass(frozen=True)
class Cost:
    """The cost of a run; or a gain, each field the full model's cost divided by the policy's (above 1 is better).

    first_token: seconds from text to the first new token, tokenization included; None without a text.
    prefill: seconds from token ids to the first new token.
    generation: seconds of all later tokens; None if there are none.
    total: seconds of the whole run, tokenization included.
    flops: true FLOPs of the prefill.
    kv_bytes: size of K and V after the prefill.
    peak_bytes: peak of the allocated GPU memory, weights included; None on a CPU.
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

    full, halted: medians over `repeats` runs. gain: medians of full / halted over pairs of successive runs, in which
    slow drift of the machine cancels. overhead: time that the engine adds to the prefill when nothing is halted, as a
    share of the host's prefill; negative where its kernels save more than it adds. share: the prefill's gain in time
    divided by its gain in FLOPs, which bounds it. (1 + overhead) * share is that of the engine's own time.
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
        """Return the tokens per second of `cost`, prompts and answers together."""
        return self.batch * (self.prompt + self.new_tokens) / cost.total


def medians(runs: Sequence[Cost]) -> Cost:
    """Return the median of each figure over the runs; None for a figure that is None."""
    return Cost(*(_all_or_none(statistics.median, figures) for figures in zip(*map(astuple, runs), strict=True)))


def median_gains(full: Sequence[Cost], halted: Sequence[Cost]) -> Cost:
    """Return the median of each figure's ratio full / halted over pairs of runs."""
    return medians([_gain(*pair) for pair in zip(full, halted, strict=True)])


def _gain(full: Cost, halted: Cost) -> Cost:
    pairs = zip(astuple(full), astuple(halted), strict=True)
    return Cost(*(_all_or_none(lambda pair: pair[0] / pair[1], pair) for pair in pairs))


def _all_or_none(combine: Callable[[Any], Any], figures: Sequence[Any]) -> Any:
    return None if None in figures else combine(figures)
