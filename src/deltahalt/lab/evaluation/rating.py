"""What sweep rows say of policies on the same samples, and which of them to choose."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from deltahalt.errors import InputError
from deltahalt.lab.evaluation.candidates import forgotten_share, looks_ahead
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import format_policy, parse_policy
from deltahalt.profile import Choice

# Standard errors by which another must beat the usual policies: the luckiest of many is two ahead by chance, and one
# that was three ahead on generated prompts lost twice as much on documents (docs/lab/journal.md).
CLEARLY = 4
CLIP = 0.5  # nats a token by which one sample may count, so that a missed answer does not rule the mean


@dataclass(frozen=True)
class Rated:
    """A policy on some samples.

    speedup: as in `reference_speedup`. changes: by sample, how much less likely the answer became, nats a token, at
    most `CLIP` up or down. exact: share of answers that stay the same.
    """

    policy: AnyPolicy
    speedup: float
    changes: Mapping[str, float]
    exact: float

    @property
    def loss(self) -> float:
        """Mean change, nats a token."""
        return fmean(self.changes.values())

    @property
    def choice(self) -> Choice:
        """The same in the words of a profile."""
        error = round(standard_error([*self.changes.values()]), 4)
        return Choice(
            format_policy(self.policy), round(self.speedup, 3), round(self.loss, 4), round(self.exact, 4), error
        )


def rate(rows: Sequence[SweepRow]) -> list[Rated]:
    """Sweep rows by policy, however their texts write it."""
    by_policy: dict[AnyPolicy, list[SweepRow]] = {}
    for row in rows:
        by_policy.setdefault(_parsed(row.policy), []).append(row)
    return [
        Rated(
            policy=policy,
            speedup=own[0].reference_speedup,
            changes={row.sample: max(-CLIP, min(CLIP, row.nll - row.full_nll)) for row in own},
            exact=fmean(row.exact for row in own),
        )
        for policy, own in by_policy.items()
    ]


_parsed = cache(parse_policy)


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of `values`; 0 for a single one, which tells of none."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def evidence(rated: Iterable[Rated]) -> list[dict[str, Any]]:
    """What a profile says of policies that were tried, slowest first."""
    by_speed = sorted(rated, key=lambda one: one.speedup)
    return [asdict(one.choice) | {"samples": len(one.changes)} for one in by_speed]


def choose(
    rated: Sequence[Rated],
    targets: Sequence[float],
    max_loss: float | None,
    usual: Mapping[float, Sequence[AnyPolicy]] = {},
) -> tuple[Choice, ...]:
    """For each target what is best at that speed or above; or, with `max_loss`, the fastest that loses no more.

    usual: by target, policies of which one is taken unless another is better. Raises InputError if none is fast enough.
    """
    if max_loss is not None:
        kept = [one for one in rated if one.loss <= max_loss]
        if not kept:
            raise InputError(f"every policy loses more than {max_loss}: allow more")
        return (max(kept, key=lambda one: one.speedup).choice,)
    chosen = []
    for target in targets:
        fast = [one for one in rated if one.speedup >= target]
        if not fast:
            raise InputError(f"no policy that was measured reaches {target}x: ask for less")
        chosen.append(within_one_error(fast, usual.get(target, ())).choice)
    return tuple(dict.fromkeys(chosen))


def within_one_error(rated: Sequence[Rated], usual: Sequence[AnyPolicy] = ()) -> Rated:
    """The one-standard-error rule: of those that no more than one standard error tells from the least loss, one.

    The least loss is that of the policies on most samples; the error that of the differences to it, on the samples that
    both were measured on. Those of `usual` come first, and with `CLEARLY` as many errors, the one that is least
    worse than the best: what was good on documents and other models is left only for what is clearly better on this
    one. Then the one that forgets the smallest share of the tokens, since real prompts are harder than generated ones;
    then the one that looks ahead least; then the one that is least worse than the best.
    """
    most = max(len(one.changes) for one in rated)
    best = min((one for one in rated if len(one.changes) == most), key=lambda one: one.loss)

    def worse(one: Rated) -> list[float]:
        both = one.changes.keys() & best.changes.keys()
        return [one.changes[sample] - best.changes[sample] for sample in both] or [0.0]

    def ties(one: Rated) -> bool:
        errors = CLEARLY if one.policy in usual else 1
        return fmean(worse(one)) <= errors * standard_error(worse(one))

    def order(one: Rated) -> tuple[bool, float, int, float]:
        if one.policy in usual:
            return False, 0.0, 0, fmean(worse(one))
        return True, forgotten_share(one.policy), looks_ahead(one.policy), fmean(worse(one))

    return min(filter(ties, rated), key=order)
