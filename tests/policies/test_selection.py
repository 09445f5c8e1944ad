"""Counting and choosing tokens: properties that hold for any scores, ratio and length."""

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltahalt import (
    BothEnds,
    Dash,
    DashLayer,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    PolicyError,
    Random,
    Uniform,
    WindowAttention,
)
from deltahalt.policies.base import Policy
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.selection import halted_count, top_k
from helpers.views import layer_view

property_of = settings(max_examples=60, deadline=None, derandomize="CI" in os.environ)

# Few distinct values, so that ties are common.
scores_lists = st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf]), max_size=30)
ratios = st.floats(0, 1, exclude_max=True)

POLICIES: list[Callable[..., Policy]] = [
    Dash,
    DashLayer,
    KeyNorm,
    LastTokenAttention,
    lambda **settings: WindowAttention(window=1, **settings),
    lambda **settings: WindowAttention(window=1, chunk=7, **settings),
    lambda **settings: MaxSim(window=1, kernel=3, **settings),
    lambda **settings: BothEnds(reach=8, **settings),
    Random,
    Uniform,
    lambda **settings: Uniform(chunk=7, **settings),
]
Case = tuple[dict[str, Any], LayerView]
every_policy = pytest.mark.parametrize(
    "build",
    POLICIES,
    ids=[
        "dash",
        "dash-layer",
        "key-norm",
        "last-token",
        "window",
        "chunks",
        "max-sim",
        "both-ends",
        "random",
        "uniform",
        "uniform-chunks",
    ],
)


def random_scores(n: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator("cpu").manual_seed(n))


# --- top_k ---


@property_of
@given(scores_lists, st.integers(0, 40))
def test_top_k_is_the_sort_by_score_and_then_by_position(scores: list[float], count: int) -> None:
    best = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:count]
    assert top_k(torch.tensor(scores), count).tolist() == sorted(best)


def test_equal_scores_go_to_the_earlier_tokens() -> None:
    assert top_k(torch.zeros(1_000), 3).tolist() == [0, 1, 2]


@property_of
@given(st.permutations(range(20)), st.integers(0, 20))
def test_top_k_follows_a_permutation_of_distinct_scores(order: list[int], count: int) -> None:
    chosen = top_k(torch.tensor(order, dtype=torch.float32), count)
    assert {order[token] for token in chosen.tolist()} == set(range(20 - count, 20))


# --- counts ---


@pytest.mark.parametrize(
    ("eligible", "ratio", "halted"),
    [(8_096, 0.667, 5_400), (10, 0.0, 0), (10, 0.24, 2), (10, 0.26, 3), (0, 0.5, 0), (-3, 0.5, 0)],
)
def test_halted_count_rounds_to_the_nearest_token(eligible: int, ratio: float, halted: int) -> None:
    assert halted_count(eligible, ratio) == halted


@property_of
@given(st.integers(1, 10_000), ratios, ratios, st.sampled_from(["eligible", "prompt"]))
def test_a_higher_ratio_never_keeps_more(prompt: int, one: float, other: float, ratio_of: Any) -> None:
    low, high = sorted([one, other])
    assert Dash(pruning_ratio=low, ratio_of=ratio_of).kept(prompt) >= Dash(pruning_ratio=high, ratio_of=ratio_of).kept(
        prompt
    )


@property_of
@given(st.integers(1, 10_000), ratios)
def test_the_share_of_eligible_tokens_that_halts_is_the_ratio_to_half_a_token(prompt: int, ratio: float) -> None:
    policy = Dash(pruning_ratio=ratio)
    eligible = max(0, prompt - policy.keep_first - policy.keep_last)
    assert abs(prompt - policy.kept(prompt) - ratio * eligible) <= 0.5


# --- active sets ---


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Settings of a policy, and a prompt."""
    options = {
        "keep_first": draw(st.integers(0, 8)),
        "keep_last": draw(st.integers(1, 8)),
        "pruning_ratio": draw(ratios),
        "ratio_of": draw(st.sampled_from(["eligible", "prompt"])),
    }
    return options, layer_view(draw(st.integers(1, 120)))


@every_policy
@property_of
@given(case=cases())
def test_kept_is_known_from_the_length_alone(build: Callable[..., Policy], case: Case) -> None:
    options, view = case
    policy = build(**options)
    assert len(policy.active_set(random_scores(view.prompt), view)) == policy.kept(view.prompt)


@every_policy
@property_of
@given(case=cases())
def test_active_sets_ascend_without_repeats(build: Callable[..., Policy], case: Case) -> None:
    options, view = case
    active = build(**options).active_set(random_scores(view.prompt), view)
    assert (active.diff() > 0).all()


@every_policy
@property_of
@given(case=cases())
def test_protected_tokens_always_stay(build: Callable[..., Policy], case: Case) -> None:
    options, view = case
    policy = build(**options)
    protected = {
        token for token in range(view.prompt) if token < policy.keep_first or token >= view.prompt - policy.keep_last
    }
    assert protected <= set(policy.active_set(random_scores(view.prompt), view).tolist())


@property_of
@given(case=cases())
def test_among_eligible_tokens_the_highest_scores_stay(case: Case) -> None:
    options, view = case
    policy, scores = Dash(**options), random_scores(view.prompt)
    active = set(policy.active_set(scores, view).tolist())
    eligible = range(policy.keep_first, view.prompt - policy.keep_last)
    stay = [scores[token] for token in eligible if token in active]
    halt = [scores[token] for token in eligible if token not in active]
    assert min(stay, default=math.inf) >= max(halt, default=-math.inf)


@every_policy
def test_scores_of_protected_tokens_do_not_matter(build: Callable[..., Policy]) -> None:
    policy, view, scores = (
        build(keep_first=5, keep_last=5, pruning_ratio=0.5),
        layer_view(60),
        random_scores(60),
    )
    other = scores.clone()
    other[:5], other[-5:] = 100, -100
    assert policy.active_set(other, view).equal(policy.active_set(scores, view))


@every_policy
def test_a_prompt_of_protected_tokens_only_stays_whole(build: Callable[..., Policy]) -> None:
    policy = build(keep_first=5, keep_last=5)
    assert policy.active_set(random_scores(8), layer_view(8)).tolist() == list(range(8))


@every_policy
def test_a_later_stage_keeps_its_share_of_the_whole_prompt(build: Callable[..., Policy]) -> None:
    left = torch.cat([torch.arange(5), torch.arange(5, 95, 2), torch.arange(95, 100)])  # 45 of 90 eligible
    policy = build(keep_first=5, keep_last=5, pruning_ratio=0.8)
    active = policy.active_set(random_scores(len(left)), layer_view(100, positions=left))
    assert len(active) == policy.kept(100) == 28


def test_a_later_stage_protects_places_in_the_prompt_and_not_in_what_is_left() -> None:
    left = torch.tensor([0, 10, *range(20, 40)])
    policy = Dash(keep_first=11, keep_last=2, pruning_ratio=0.9)  # 16 of 40 stay
    active = policy.active_set(torch.arange(22.0), layer_view(40, positions=left))
    assert left[active].tolist() == [0, 10, *range(26, 40)]


@every_policy
def test_a_later_stage_that_would_keep_more_than_is_left_keeps_all_of_it(
    build: Callable[..., Policy],
) -> None:
    left = torch.arange(0, 100, 9)  # 12 tokens
    active = build(keep_first=5, keep_last=5, pruning_ratio=0.5).active_set(
        random_scores(12), layer_view(100, positions=left)
    )
    assert active.tolist() == list(range(12))


# --- scores that are no numbers ---


@every_policy
@pytest.mark.parametrize("token", [0, 30, 59])
def test_a_score_of_nan_is_refused(build: Callable[..., Policy], token: int) -> None:
    policy, scores = build(keep_first=5, keep_last=5), random_scores(60)
    scores[token] = math.nan
    with pytest.raises(PolicyError, match=f"{policy.name} scored some tokens as NaN"):
        policy.active_set(scores, layer_view(60))


def test_infinite_scores_are_ordered_like_any_other() -> None:
    scores = torch.tensor([1.0, -math.inf, 3.0, math.inf, 0.0, 2.0])
    policy = Dash(keep_first=0, keep_last=1, pruning_ratio=0.6)  # 2 of 5 eligible tokens stay
    assert policy.active_set(scores, layer_view(6)).tolist() == [2, 3, 5]
