"""Each ViT-stage method: its options, and what it leaves."""

from typing import Any

import pytest

from deltahalt import PolicyError
from deltahalt.vision import (
    VISION_POLICIES,
    DartViT,
    PruMergePlus,
    RandomGroups,
    ToMe,
    VisionDash,
    VisionPolicy,
    VisionZip,
    parse_vision_policy,
)
from helpers.group_views import UNIT, WIDTH, group_view, states_of


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("shape", [(UNIT, WIDTH), (1, 24)], ids=["states", "features"])
def test_a_method_leaves_what_it_is_asked_for_in_ascending_order(policy: Any, shape: tuple[int, int]) -> None:
    for count in (12, 19, 23):
        reduced = policy(retain=count / 24).reduce(group_view(24), states_of(24, *shape), count)
        assert len(reduced.index) == count
        assert (reduced.index.diff() > 0).all()
        assert reduced.states.shape == (count, *shape)
        assert reduced.states.isfinite().all()


@pytest.mark.parametrize(
    ("retain", "total", "kept"), [(0.5, 12, 6), (0.35, 12, 4), (0.01, 12, 1), (1, 12, 12), (0.2, 1, 1)]
)
def test_a_share_is_rounded_and_never_nothing(retain: float, total: int, kept: int) -> None:
    assert VisionDash(retain=retain).kept(total) == kept


@pytest.mark.parametrize(("start", "block"), [(2, 2), (0.25, 8), (0.0, 0), (-2, 30), (30, 30)])
def test_start_is_an_index_or_a_share_of_the_depth(start: float, block: int) -> None:
    assert VisionDash(start=start).blocks(32) == range(block, block + 1)


@pytest.mark.parametrize(("policy", "start"), [(VisionDash, 31), (VisionDash, -1), (VisionZip, 32), (VisionZip, -33)])
def test_a_start_outside_of_the_tower_is_refused(policy: Any, start: int) -> None:
    with pytest.raises(PolicyError, match=f"starts at block {start}; in this tower of 32 blocks, give 0 to"):
        policy(start=start).blocks(32)


@pytest.mark.parametrize(
    ("policy", "option", "value"),
    [
        (VisionDash, "retain", 0),
        (VisionDash, "retain", 1.1),
        (VisionDash, "retain", "half"),
        (VisionDash, "start", 1.5),
        (DartViT, "pivots", 0),
        (ToMe, "step", 0.4),
        (ToMe, "step", 1),
        (VisionZip, "contextual", 1),
        (PruMergePlus, "neighbours", -1),
        (RandomGroups, "seed", 0.5),
    ],
)
def test_settings_out_of_range_are_refused(policy: Any, option: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=option):
        policy(**{option: value})


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
def test_every_method_is_listed_by_name_and_says_what_it_does(policy: type[VisionPolicy]) -> None:
    assert parse_vision_policy(policy.name) == policy()
    assert policy.summary
    assert policy.source
    assert policy.stage == "vision"


def test_options_are_read_from_text() -> None:
    assert parse_vision_policy("visionzip:retain=0.25,start=-3,contextual=0.1") == VisionZip(
        retain=0.25, start=-3, contextual=0.1
    )
    assert parse_vision_policy("tome:start=0.5,step=0.9", retain=0.35) == ToMe(start=0.5, step=0.9, retain=0.35)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dash", "dash is a policy of the decoder: give it to --policy"),
        ("tome:pivots=3", "tome has no option 'pivots'; it has retain, start, step"),
        ("tome:retain=half", "tome option retain is 'half'; it must be a number"),
    ],
)
def test_text_that_names_no_method_or_option_is_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_vision_policy(text)
