"""Policies by name: `dash`, or `key-norm:start=0.15+window-attention:start=0.5,window=16`."""

import pytest

from deltahalt import Dash, KeyNorm, PolicyError, Progressive, Random, WindowAttention, parse_policy
from deltahalt.policies import POLICIES
from deltahalt.policies.base import Policy


@pytest.mark.parametrize(
    "name",
    [
        "dash",
        "dash-layer",
        "window-attention",
        "last-token-attention",
        "key-norm",
        "random",
        "uniform",
        "dense",
    ],
)
def test_a_name_alone_gives_the_policy_with_its_defaults(name: str) -> None:
    assert parse_policy(name) == POLICIES[name]()


def test_every_policy_is_listed_under_its_own_name() -> None:
    assert [policy.name for policy in POLICIES.values()] == list(POLICIES)


@pytest.mark.parametrize("policy", POLICIES.values())
def test_every_policy_says_what_it_does_and_where_it_is_from(policy: type[Policy]) -> None:
    assert policy.summary
    assert policy.source


def test_options_are_typed() -> None:
    policy = parse_policy("window-attention:start=9,pruning_ratio=0.5,window=16,heads=max,boundary=attention")
    assert policy == WindowAttention(start=9, pruning_ratio=0.5, window=16, heads="max", boundary="attention")


@pytest.mark.parametrize(("text", "start"), [("0.25", 0.25), ("7", 7), ("0", 0), ("1e-1", 0.1)])
def test_start_is_an_integer_or_a_fraction_as_written(text: str, start: float) -> None:
    policy = parse_policy(f"dash:start={text}")
    assert isinstance(policy, Dash)
    assert policy.start == start
    assert type(policy.start) is type(start)


def test_an_option_of_one_policy_is_read_by_its_own_type() -> None:
    assert parse_policy("random:seed=3") == Random(seed=3)


def test_dashes_and_spaces_in_options_are_taken() -> None:
    policy = parse_policy(" window-attention: pruning-ratio = 0.5 , heads = max ")
    assert policy == WindowAttention(pruning_ratio=0.5, heads="max")


def test_stages_are_joined_by_plus() -> None:
    policy = parse_policy("key-norm:start=0.15,pruning_ratio=0.5 + window-attention:start=0.5,pruning_ratio=0.8")
    assert policy == Progressive(
        [KeyNorm(start=0.15, pruning_ratio=0.5), WindowAttention(start=0.5, pruning_ratio=0.8)]
    )


def test_overrides_win_over_what_is_written() -> None:
    assert parse_policy("dash:pruning_ratio=0.5,start=3", pruning_ratio=0.9) == Dash(start=3, pruning_ratio=0.9)


def test_overrides_apply_to_every_stage() -> None:
    policy = parse_policy("dash:start=3,pruning_ratio=0.5+dash:start=9,pruning_ratio=0.9", keep_first=4)
    assert [stage.keep_first for stage in policy.stages] == [4, 4]


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PolicyError, match=r"no policy 'slowv'.*dash, dash-frozen, dash-layer, dense"):
        parse_policy("slowv")


@pytest.mark.parametrize("text", ["", "dash+", "dash + + key-norm"])
def test_a_missing_name_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="no policy ''"):
        parse_policy(text)


def test_an_unknown_option_is_answered_with_the_policy_s_own() -> None:
    with pytest.raises(PolicyError, match=r"key-norm has no option 'window'; it has start, pruning_ratio"):
        parse_policy("key-norm:window=16")


def test_an_unknown_override_is_refused_likewise() -> None:
    with pytest.raises(PolicyError, match="dash has no option 'window'"):
        parse_policy("dash", window=16)


@pytest.mark.parametrize("name", ["name", "summary", "source", "score"])
def test_what_describes_a_policy_is_no_option(name: str) -> None:
    with pytest.raises(PolicyError, match=f"no option '{name}'"):
        parse_policy(f"dash:{name}=x")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("start", "early"),
        ("start", ""),
        ("pruning_ratio", "half"),
        ("keep_first", "many"),
        ("keep_first", "1.5"),
    ],
)
def test_an_option_that_is_no_number_is_refused_with_its_name_and_value(option: str, value: str) -> None:
    with pytest.raises(PolicyError, match=f"dash option {option} is '{value}'"):
        parse_policy(f"dash:{option}={value}")


def test_settings_out_of_range_are_refused_as_when_built_by_hand() -> None:
    with pytest.raises(PolicyError, match=r"pruning_ratio is 1\.5"):
        parse_policy("dash:pruning_ratio=1.5")


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(PolicyError, match="start"):
        parse_policy("dash:start=3,start=5")
