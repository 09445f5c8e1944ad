"""Sweep rows summed up by policy on the same samples, and the choice of a policy among them."""

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

# Number of standard errors by which another policy must beat the usual ones. Among many policies, chance alone gives a
# lead of two; a policy that led by three on generated prompts had twice the loss on documents (docs/lab/journal.md).
CLEARLY = 4
CLIP = 0.5  # largest change of one sample, nats per token, so that one missed answer does not dominate the mean


@dataclass(frozen=True)
class Rated:
    """A policy's results on some samples.

    speedup: as in `reference_speedup`. changes: for each sample, the increase in the answer's negative log-likelihood,
    nats per token, clipped to -`CLIP`..`CLIP`. exact: share of answers that greedy decoding gives whole.
    """

    policy: AnyPolicy
    speedup: float
    changes: Mapping[str, float]
    exact: float

    @property
    def loss(self) -> float:
        """Mean change, nats per token."""
        return fmean(self.changes.values())

    @property
    def choice(self) -> Choice:
        """The policy and its results as a profile stores them."""
        error = round(standard_error([*self.changes.values()]), 4)
        return Choice(
            format_policy(self.policy), round(self.speedup, 3), round(self.loss, 4), round(self.exact, 4), error
        )


def rate(rows: Sequence[SweepRow]) -> list[Rated]:
    """Sum up sweep rows by policy. Different texts of the same policy count as one."""
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
    """Return the standard error of the mean of `values`; 0 for a single value, for which it is undefined."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def evidence(rated: Iterable[Rated]) -> list[dict[str, Any]]:
    """Return the entries of a profile about the policies that were tried, slowest first."""
    by_speed = sorted(rated, key=lambda one: one.speedup)
    return [asdict(one.choice) | {"samples": len(one.changes)} for one in by_speed]


def choose(
    rated: Sequence[Rated],
    targets: Sequence[float],
    max_loss: float | None,
    usual: Mapping[float, Sequence[AnyPolicy]] = {},
) -> tuple[Choice, ...]:
    """Choose the best policy with at least each target speedup; or, with `max_loss`, the fastest with no higher loss.

    usual: for each target, the policies that are preferred unless another is clearly better. Raises InputError if no
    policy is fast enough, or every loss is above `max_loss`.
    """
    if max_loss is not None:
        kept = [one for one in rated if one.loss <= max_loss]
        if not kept:
            raise InputError(f"every policy loses more than {max_loss} nats per token: give a higher --max-loss")
        return (max(kept, key=lambda one: one.speedup).choice,)
    chosen = []
    for target in targets:
        fast = [one for one in rated if one.speedup >= target]
        if not fast:
            raise InputError(f"no policy that was measured reaches {target}x: give a lower target speedup")
        chosen.append(within_one_error(fast, usual.get(target, ())).choice)
    return tuple(dict.fromkeys(chosen))


def within_one_error(rated: Sequence[Rated], usual: Sequence[AnyPolicy] = ()) -> Rated:
    """Choose a policy by the one-standard-error rule: one whose loss is within a standard error of the lowest.

    The lowest loss is taken among the policies that were measured on most samples. The error is that of the differences
    to this best policy, on the samples that both were measured on.

    A policy in `usual` is preferred, and allowed `CLEARLY` standard errors: it did well on documents and other models,
    so it is replaced only by one that is clearly better on this model. Among several usual policies, the one closest to
    the best is chosen. Among other policies, the one that forgets the smallest share of the tokens is chosen, since
    real prompts are harder than generated ones; then the one with the shortest look-ahead; then the one closest to the
    best.
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
