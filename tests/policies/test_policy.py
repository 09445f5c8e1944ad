"""A policy's settings, how many tokens it keeps, and where it is placed in a model."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from deltahalt import (
    Dash,
    Dense,
    KeyNorm,
    PolicyError,
    Progressive,
    UnsupportedError,
    V2Drop,
    WindowAttention,
    format_policy,
    override,
    parse_policy,
)
from deltahalt.kinds import IMAGE, TEXT
from deltahalt.policies.base import Policy, place

# --- settings ---


def test_defaults_are_those_of_the_paper() -> None:
    policy = Dash()
    assert (policy.start, policy.pruning_ratio, policy.keep_first, policy.keep_last) == (0.4, 0.667, 64, 32)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("start", -1),
        ("start", -0.1),
        ("start", 1.0),
        ("start", 2.5),
        ("start", True),
        ("start", math.nan),
        ("pruning_ratio", -0.1),
        ("pruning_ratio", 1.01),
        ("pruning_ratio", math.nan),
        ("keep_first", -1),
        ("shortest", -1),
        ("keep", -1),
        ("keep", 2.5),
        ("keep_last", 0),
        ("scope", "audio"),
        ("boundary", "norm"),
        ("ratio_of", "model"),
        ("start", "0.4"),
        ("pruning_ratio", "half"),
        ("keep_first", 2.5),
        ("keep_last", True),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"{option} is {value!r}"):
        Dash(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("start", 0),
        ("start", 0.0),
        ("start", 0.999),
        ("start", 40),
        ("pruning_ratio", 0),
        ("keep_first", 0),
        ("keep_last", 1),
    ],
)
def test_a_setting_at_the_edge_of_its_range_is_taken(option: str, value: Any) -> None:
    assert getattr(Dash(**{option: value}), option) == value


@pytest.mark.parametrize(
    ("option", "choices"),
    [("scope", "all, visual, text, image, video"), ("boundary", "block, attention"), ("ratio_of", "eligible, prompt")],
)
def test_a_wrong_choice_is_answered_with_the_right_ones(option: str, choices: str) -> None:
    build: Any = Dash
    with pytest.raises(PolicyError, match=choices):
        build(**{option: "nonsense"})


# --- kept ---


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [(0, 0), (1, 1), (96, 96), (97, 96), (98, 97), (196, 129), (8_192, 2_792)],
)
def test_kept_counts_the_protected_tokens_and_the_rest_of_the_eligible_ones(tokens: int, kept: int) -> None:
    # 98: 1.33 of 2 eligible tokens round to one halted; 196: 66.7 of 100 to 67.
    assert Dash().kept(tokens) == kept


def test_a_ratio_of_zero_keeps_every_token() -> None:
    assert Dash(pruning_ratio=0).kept(1_000) == 1_000


@pytest.mark.parametrize(
    ("ratio", "tokens", "kept"),
    [
        (0.5, 1_000, 500),
        (0.5, 1_001, 500),
        # Floating point makes (1 - 0.9) * 1000 less than 100, and (1 - 0.667) * 1000 less than 333.
        (0.9, 1_000, 100),
        (0.667, 1_000, 333),
    ],
)
def test_a_ratio_of_the_prompt_keeps_the_floor_of_eq_3(ratio: float, tokens: int, kept: int) -> None:
    assert Dash(pruning_ratio=ratio, ratio_of="prompt").kept(tokens) == kept


def test_a_ratio_of_the_prompt_never_halts_protected_tokens() -> None:
    assert Dash(pruning_ratio=0.9, ratio_of="prompt", keep_first=64, keep_last=32).kept(200) == 96


def test_dense_keeps_every_token() -> None:
    assert Dense().kept(1_000) == 1_000


# --- place ---


@pytest.mark.parametrize(
    ("start", "layers", "last"), [(0.4, 28, 11), (0.49, 10, 4), (0.4, 30, 12), (0.0, 28, 0), (14, 28, 14), (1, 28, 1)]
)
def test_start_is_a_layer_or_the_floor_of_a_fraction(start: float, layers: int, last: int) -> None:
    (stage,) = place(Dash(start=start), layers)
    assert stage.last == last


def test_a_policy_that_reads_one_layer_scores_its_start_layer() -> None:
    (stage,) = place(Dash(start=5), 28)
    assert stage.first == stage.last == 5


def test_a_policy_that_sums_layers_scores_those_before_its_start_too() -> None:
    (stage,) = place(WindowAttention(start=5, layers=4), 28)
    assert (stage.first, stage.last) == (2, 5)


def test_the_last_start_layer_leaves_one_deeper_layer() -> None:
    assert place(Dash(start=26), 28)[0].last == 26
    with pytest.raises(PolicyError, match="start at 26 at most"):
        place(Dash(start=27), 28)


def test_more_summed_layers_than_there_are_is_refused() -> None:
    assert place(WindowAttention(start=3, layers=4), 28)[0].first == 0
    with pytest.raises(PolicyError, match="scores layers -1 to 3"):
        place(WindowAttention(start=3, layers=5), 28)


def test_visual_scope_needs_a_vision_language_model() -> None:
    with pytest.raises(UnsupportedError, match="vision-language"):
        place(Dash(scope="visual"), 28)


def test_dense_has_no_stage() -> None:
    assert place(Dense(), 28) == ()


# --- Progressive ---


def test_progressive_places_its_stages_in_order() -> None:
    policy = Progressive([KeyNorm(start=0.25, pruning_ratio=0.5), WindowAttention(start=14, pruning_ratio=0.9)])
    assert [(stage.policies[0].name, stage.last) for stage in place(policy, 28)] == [
        ("key-norm", 7),
        ("window-attention", 14),
    ]


@pytest.mark.parametrize("starts", [(14, 7), (7, 7)])
def test_stages_out_of_order_or_at_one_layer_are_refused(starts: tuple[int, int]) -> None:
    policy = Progressive(
        [Dash(start=start, pruning_ratio=ratio) for start, ratio in zip(starts, (0.5, 0.9), strict=True)]
    )
    with pytest.raises(PolicyError, match="begin at layer"):
        place(policy, 28)


def test_a_stage_may_not_score_layers_of_the_stage_before() -> None:
    first = Dash(start=7, pruning_ratio=0.5)
    assert len(place(Progressive([first, WindowAttention(start=10, layers=3, pruning_ratio=0.9)]), 28)) == 2
    with pytest.raises(PolicyError, match="scores layers 7 to 10"):
        place(Progressive([first, WindowAttention(start=10, layers=4, pruning_ratio=0.9)]), 28)


def test_ratios_may_not_fall_from_stage_to_stage() -> None:
    stages = [Dash(start=7, pruning_ratio=0.9), Dash(start=14, pruning_ratio=0.5)]
    with pytest.raises(PolicyError, match="pruning_ratio"):
        Progressive(stages)


def test_dense_inside_progressive_halts_nothing() -> None:
    dash = Dash(start=14)
    assert place(Progressive([Dense(), dash]), 28) == place(dash, 28)


@pytest.mark.parametrize("stages", [[], ["dash"], [Progressive([Dash()])]], ids=["nothing", "name", "progressive"])
def test_progressive_takes_policies_and_at_least_one(stages: list[Any]) -> None:
    with pytest.raises(PolicyError, match="policies"):
        Progressive(stages)


def test_progressive_does_not_follow_later_changes_of_its_argument() -> None:
    stages: list[Policy] = [Dash(start=7)]
    policy = Progressive(stages)
    stages.clear()
    assert policy.stages == (Dash(start=7),)


# --- a number of tokens in place of a share ---


@pytest.mark.parametrize(
    ("tokens", "kept"), [(4096, 300), (301, 300), (300, 300), (120, 120), (97, 97)], ids=lambda value: f"{value}"
)
def test_keep_is_the_number_of_tokens_that_stay(tokens: int, kept: int) -> None:
    assert Dash(keep=300).kept(tokens) == kept


def test_protected_tokens_stay_even_where_keep_is_less() -> None:
    assert Dash(keep=50).kept(4096) == 96


def test_keep_and_a_ratio_exclude_each_other() -> None:
    with pytest.raises(PolicyError, match=r"keep is 300 and pruning_ratio is 0.5: both say how many tokens stay"):
        Dash(keep=300, pruning_ratio=0.5)
    both = parse_policy("dash:keep=300,keep_first=4")
    assert format_policy(override(both, pruning_ratio=0.5)) == "dash:pruning_ratio=0.5,keep_first=4"
    assert format_policy(override(Dash(pruning_ratio=0.5), keep=300)) == "dash:keep=300"
    assert format_policy(parse_policy("dash:pruning_ratio=0.5", keep=300)) == "dash:keep=300"


def test_keep_falls_from_stage_to_stage() -> None:
    stages = Progressive([Dash(start=1, keep=300), Dash(start=3, keep=200)]).stages
    assert [stage.kept(4096) for stage in stages] == [300, 200]
    with pytest.raises(PolicyError, match="keep grows from 200 to 300"):
        Progressive([Dash(start=1, keep=200), Dash(start=3, keep=300)])


def test_three_stages_do_not_share_one_keep() -> None:
    with pytest.raises(PolicyError, match="three stages, which cannot share one keep"):
        V2Drop(keep=300)


# --- short prompts ---


def test_a_prompt_below_the_shortest_stays_whole() -> None:
    policy = Dash(pruning_ratio=0.5, shortest=200)
    assert [policy.kept(tokens) for tokens in (96, 199, 200)] == [96, 199, 200 - 52]
    assert Dash(keep=100, shortest=200).kept(199) == 199
    assert [stage.shortest for stage in V2Drop(shortest=200).stages] == [200] * 3
    assert format_policy(policy) == "dash:pruning_ratio=0.5,shortest=200"


def test_tokens_of_an_image_count_for_the_shortest() -> None:
    kinds = torch.tensor([TEXT] * 10 + [IMAGE] * 80 + [TEXT] * 10)
    policy = Dash(pruning_ratio=0.5, scope="visual")
    assert policy.kept(100, kinds) == 40
    assert replace(policy, shortest=100).kept(100, kinds) == 40
    assert replace(policy, shortest=101).kept(100, kinds) == 80
