"""Policies as text: what is formatted is parsed back, options override, and an error says what to write."""

from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltahalt import Dash, Dense, MaxSim, PolicyError, Progressive, Random, V2Drop, WindowAttention
from deltahalt.policies import POLICIES
from deltahalt.policies.base import AnyPolicy, Policy
from deltahalt.policies.options import options_of
from deltahalt.policies.text import format_policy, override, parse_policy, read, write
from deltahalt.vision.policies import parse_vision_policy


def _values(name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of an option; most policies take them, and others are skipped."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if name == "kernel":
        return st.integers(0, 200).map(lambda half: 2 * half + 1)
    if hint is bool:
        return st.booleans()
    shares = st.floats(0, 1, exclude_max=True) | st.sampled_from([0, 1]) if "ratio" in name else st.floats(0, 5)
    if hint is int:
        return st.integers(0, 300)
    return shares if hint is float else st.integers(0, 60) | st.floats(0, 1, exclude_max=True)


@st.composite
def _policies(draw: st.DrawFn, kinds: list[type[Policy]]) -> Policy | None:
    kind = draw(st.sampled_from(kinds))
    hints = options_of(kind)
    given_ones = draw(st.lists(st.sampled_from(sorted(hints)), unique=True)) if hints else []
    options = {name: draw(_values(name, hints[name])) for name in given_ones}
    try:
        return kind(**options)
    except PolicyError:  # options that do not go together
        return None


def _same(policy: AnyPolicy) -> None:
    text = format_policy(policy)
    again = parse_policy(text)
    assert again == policy
    assert format_policy(again) == text
    assert write(read(text)) == text
    for stage, same in zip(policy.stages, again.stages, strict=True):
        assert type(stage.start) is type(same.start)


@pytest.mark.parametrize("kind", POLICIES.values())
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_policy_is_parsed_as_it_was_formatted(kind: type[Policy], data: st.DataObject) -> None:
    policy = data.draw(_policies([kind]))
    if policy is not None:
        _same(policy)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_stages_are_parsed_as_they_were_formatted(data: st.DataObject) -> None:
    single = [kind for name, kind in POLICIES.items() if name != "dense"]
    stages = [stage for stage in data.draw(st.lists(_policies(single), min_size=2, max_size=4)) if stage is not None]
    try:
        policy = Progressive(stages)
    except PolicyError:  # ratios that fall, or no stage
        return
    if len(policy.stages) > 1:
        _same(policy)


def test_the_canonical_text_has_what_differs_from_the_defaults_in_one_order() -> None:
    policy = WindowAttention(ahead=12, chunk=64, heads="max", keep_last=128, pruning_ratio=0.44, start=4, scope="all")
    assert (
        format_policy(policy) == "window-attention:start=4,pruning_ratio=0.44,heads=max,chunk=64,keep_last=128,ahead=12"
    )
    assert format_policy(Dense()) == "dense"
    assert format_policy(MaxSim(standardize=True, pruning_ratio=1)) == "max-sim:pruning_ratio=1,standardize=true"


def test_an_option_overrides_every_stage() -> None:
    two = Progressive([Dash(start=1, pruning_ratio=0.5), Random(start=3, pruning_ratio=0.8)])
    assert [stage.keep_first for stage in override(two, keep_first="4").stages] == [4, 4]
    assert override(Dash(start=3), start="0.5", pruning_ratio=0.9) == Dash(start=0.5, pruning_ratio=0.9)
    assert override(two) is two
    assert override(V2Drop(), third_ratio=0.99).stages[2].pruning_ratio == 0.99


@pytest.mark.parametrize("option", ["start", "pruning_ratio"])
def test_stages_have_no_start_or_ratio_in_common(option: str) -> None:
    two = Progressive([Dash(start=1, pruning_ratio=0.5), Random(start=3, pruning_ratio=0.8)])
    with pytest.raises(PolicyError, match=f"several stages, which cannot share one {option}"):
        override(two, **{option: 0.5})
    with pytest.raises(PolicyError, match=f"several stages, which cannot share one {option}"):
        parse_policy(format_policy(two), **{option: 0.5})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pruning_ratio": 2}, "pruning_ratio is 2"),
        ({"pruning_ratio": "much"}, "dash option pruning_ratio is 'much'"),
        ({"window": 3}, "dash has no option 'window'"),
        ({"pruning_rato": 0.5}, "did you mean 'pruning_ratio'"),
    ],
)
def test_an_override_is_checked(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        override(Dash(), **options)


@pytest.mark.parametrize("make", [lambda: override(Dense(), pruning_ratio=0.5), lambda: Dense(pruning_ratio=0.5)])
def test_the_full_model_takes_no_options(make: Any) -> None:
    with pytest.raises(PolicyError, match=r"dense takes no options.*leave pruning_ratio out"):
        make()


@pytest.mark.parametrize("kind", POLICIES.values())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2**64, -(2**70)])
def test_no_option_takes_what_is_not_finite_or_beyond_64_bits(kind: type[Policy], value: float) -> None:
    for name in (option.name for option in fields(kind) if option.default is not MISSING):
        with pytest.raises(PolicyError):
            kind(**{name: value})


def test_an_option_given_twice_in_one_text_is_shown_with_both_values() -> None:
    with pytest.raises(PolicyError, match=r"'dash:start=3,start=5' gives start twice, as 3 and as 5"):
        parse_policy("random+dash:start=3,start=5")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("dahs", r"did you mean 'dash'\?"),
        ("d3", r"d3 is a method that halts no tokens in decoder layers: --policy of run"),
        ("visionzip", r"visionzip is a policy of the ViT: give it to look --vision-policy"),
        ("auto", r"auto is a profile, which is for one model"),
    ],
)
def test_a_name_that_is_not_a_policy_of_the_decoder_is_explained(name: str, advice: str) -> None:
    with pytest.raises(PolicyError, match=f"no policy '{name}' here: .*{advice}"):
        parse_policy(name)


def test_a_policy_of_the_decoder_is_explained_where_the_vit_needs_one() -> None:
    with pytest.raises(PolicyError, match="dash is a policy of the decoder: give it to --policy"):
        parse_vision_policy("dash")
    with pytest.raises(PolicyError, match="a ViT takes only one"):
        parse_vision_policy("tome+tome")
