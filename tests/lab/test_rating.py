"""What calibration reads from rows: clipped changes, their standard error, and which policy it prefers for them."""

from dataclasses import replace
from math import sqrt

import pytest

from deltahalt import InputError, Policy, WindowAttention, parse_policy
from deltahalt.lab.evaluation.rating import CLIP, Rated, choose, rate, standard_error, within_one_error
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.policies.text import format_policy

A, B, C = (WindowAttention(start=4, pruning_ratio=ratio) for ratio in (0.6, 0.7, 0.8))


def _row(policy: Policy, change: float, sample: str = "a", *, exact: bool = True) -> SweepRow:
    return SweepRow(sample, "t", "m", format_policy(policy), 100, 2, exact, 1 + change, True, 1.0, 1.0, 1.6, 1.7)


def _rated(policy: Policy, *changes: float, speedup: float = 1.7) -> Rated:
    return Rated(policy, speedup, dict(zip("abcdefgh", changes, strict=False)), 1.0)


def test_a_missed_answer_counts_no_more_than_the_clip() -> None:
    rows = [_row(A, 0.1), _row(B, 9.0), _row(A, 7.0, "b", exact=False), _row(B, -3.0, "b")]
    a, b = rate(rows)
    assert a.changes == {"a": pytest.approx(0.1), "b": CLIP}
    assert b.changes == {"a": CLIP, "b": -CLIP}
    assert (a.policy, a.speedup, a.exact, b.exact) == (A, 1.7, 0.5, 1.0)
    assert a.loss == pytest.approx((0.1 + CLIP) / 2)


def test_a_choice_has_the_loss_with_its_standard_error() -> None:
    changes = (0.1, 0.4, -0.2, 0.3)
    mean = sum(changes) / 4
    error = sqrt(sum((change - mean) ** 2 for change in changes) / 3 / 4)
    choice = _rated(A, *changes).choice
    assert (choice.loss, choice.error) == (pytest.approx(mean, abs=1e-4), pytest.approx(error, abs=1e-4))
    assert standard_error([0.3]) == 0


def test_what_one_standard_error_cannot_tell_from_the_best_goes_to_what_halts_least() -> None:
    best = _rated(C, 0.0, 0.1, 0.0, 0.1)
    # differences to the best: 0.1, 0, 0.1, 0 -> mean 0.05, error 0.029; and 0.2, -0.1, 0.1, -0.1 -> 0.025, 0.075
    worse, tied = _rated(A, 0.1, 0.1, 0.1, 0.1), _rated(B, 0.2, 0.0, 0.1, 0.0)
    assert within_one_error([best, worse, tied]) == tied
    assert within_one_error([best, worse]) == best


def test_the_error_is_that_of_paired_differences() -> None:
    """Losses that spread widely, but together: sample by sample one is worse, if by little."""
    best, other = _rated(C, 0.5, -0.5, 0.3, -0.3), _rated(A, 0.49, -0.46, 0.33, -0.28)
    assert standard_error([*best.changes.values()]) > other.loss - best.loss
    assert within_one_error([best, other]) == best


def test_what_is_usual_is_left_only_for_what_is_clearly_better() -> None:
    best, tied = _rated(B, 0.0, 0.1, 0.0, 0.1), _rated(C, 0.2, 0.0, 0.1, 0.0)
    assert within_one_error([best, tied]) == best  # it halts less
    assert within_one_error([best, tied], [C]) == tied
    worse = _rated(C, 0.1, 0.1, 0.1, 0.1)  # by 0.05, or 1.7 errors
    assert within_one_error([best, worse], [C]) == worse
    clearly = _rated(C, 0.1, 0.2, 0.2, 0.2)  # by 0.125, or 5
    assert within_one_error([best, clearly], [C]) == best


def test_only_samples_that_both_were_measured_on_tell_two_policies_apart() -> None:
    best = Rated(B, 1.7, {"a": 0.0, "b": 0.0}, 1.0)
    assert within_one_error([best, Rated(C, 1.7, {"b": 0.0, "c": 0.5}, 1.0)], [C]).policy == C
    assert within_one_error([best, Rated(C, 1.7, {"b": 0.1, "c": 0.5}, 1.0)], [C]).policy == B
    assert within_one_error([best, Rated(C, 1.7, {"c": 0.5}, 1.0)], [C]).policy == C


def test_a_few_easy_samples_are_no_least_loss() -> None:
    many, few = _rated(B, 0.1, 0.1, 0.1), Rated(C, 1.7, {"a": -0.3}, 1.0)
    assert within_one_error([many, few]) == many


def test_what_is_usual_at_one_speed_is_not_at_another() -> None:
    slow, fast = _rated(C, 0.0, 0.1), _rated(A, 0.1, 0.0, speedup=2.5)
    assert [parse_policy(one.policy) for one in choose([slow, fast], [1.7, 2.5], None, {1.7: [C], 2.5: [A]})] == [C, A]
    assert [parse_policy(one.policy) for one in choose([slow, fast], [1.7, 2.5], None, {2.5: [A]})] == [A]


def test_of_usual_policies_the_one_that_is_least_worse_than_the_best_is_chosen() -> None:
    """On the samples that it was measured on, which may be the harder ones."""
    best = Rated(B, 1.7, {"a": 0.0, "b": 0.4, "c": 0.0}, 1.0)
    everywhere = Rated(replace(C, chunk=64), 1.7, {"a": 0.06, "b": 0.42, "c": 0.0}, 1.0)
    somewhere = Rated(replace(C, chunk=32), 1.7, {"b": 0.41}, 1.0)
    usual = [everywhere.policy, somewhere.policy]
    assert somewhere.loss > everywhere.loss
    assert within_one_error([best, everywhere], usual) == everywhere
    assert within_one_error(
        [best, everywhere, Rated(somewhere.policy, 1.7, {"b": 0.41, "c": 0.0}, 1.0)], usual
    ).policy == (somewhere.policy)


def test_of_ties_that_halt_alike_the_one_that_looks_ahead_least_is_chosen() -> None:
    far, near = _rated(replace(A, ahead=12), 0.0, 0.1), _rated(replace(A, ahead=6), 0.1, 0.0)
    less = _rated(WindowAttention(start=3, pruning_ratio=0.5, ahead=20), 0.05, 0.06)
    assert within_one_error([far, near]) == near
    assert within_one_error([far, near, less]) == less


def test_of_ties_that_are_alike_the_least_loss_is_chosen() -> None:
    one, other = _rated(replace(A, chunk=32), 0.0, 0.1), _rated(replace(A, chunk=64), 0.02, 0.07)
    assert within_one_error([one, other]) == other


MEASURED = [_rated(A, 0.1, 0.1), _rated(B, 0.05, 0.05, speedup=1.8), _rated(C, 0.3, 0.3, speedup=2.5)]


def test_for_each_speed_the_least_loss_is_chosen() -> None:
    assert choose(MEASURED, [1.7, 2.0], None) == (MEASURED[1].choice, MEASURED[2].choice)
    assert choose(MEASURED, [1.7, 1.75], None) == (MEASURED[1].choice,)
    with pytest.raises(InputError, match=r"3\.0x"):
        choose(MEASURED, [3.0], None)


def test_for_a_loss_the_fastest_is_chosen() -> None:
    assert choose(MEASURED, [1.7], 0.2) == (MEASURED[1].choice,)
    with pytest.raises(InputError, match="give a higher --max-loss"):
        choose(MEASURED, [1.7], 0.01)
