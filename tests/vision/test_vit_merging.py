"""ToMe and ToFu against naive references, and by hand in a tower."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltahalt import PolicyError
from deltahalt.vision import (
    ToFu,
    ToMe,
    halting_vision,
)
from deltahalt.vision.merging import match
from helpers import vit_oracle
from helpers.group_views import UNIT, WIDTH, group_view, states_of
from helpers.tiny_vision import GRID, MROPE, pixels, tiny_vision
from helpers.vit_naive import (
    match_naively,
    mean_keys,
    tofu_naively,
    tome_naively,
)
from helpers.vit_policies import each_merging


@pytest.mark.parametrize(("n", "merges"), [(2, 1), (3, 2), (12, 3), (13, 7)])
def test_every_other_group_merges_into_the_most_similar_of_those_between(n: int, merges: int) -> None:
    metric = states_of(n, 5)
    matching = match(metric, merges)
    expected = match_naively(metric.tolist(), merges)
    assert dict(zip(matching.sources.tolist(), matching.targets.tolist(), strict=True)) == expected
    assert matching.kept.tolist() == [group for group in range(n) if group not in expected]


def test_tome_averages_by_size() -> None:
    sizes = torch.arange(1.0, 12)
    view, states = group_view(11, sizes=sizes), states_of(11)
    expected = tome_naively(list(states), sizes.tolist(), match_naively(mean_keys(view), 5))
    reduced = ToMe().reduce(view, states, 6)
    torch.testing.assert_close(reduced.states, torch.stack(expected[0]))
    assert reduced.sizes is not None
    assert reduced.sizes.tolist() == expected[1]


def test_tofu_drops_in_the_first_half_of_the_steps_and_fuses_in_the_second() -> None:
    policy = ToFu(retain=0.35)
    assert policy.schedule(20) == [16, 12, 9, 7]
    for before, after, prunes in [(20, 16, True), (16, 12, True), (12, 9, False), (9, 7, False)]:
        view, states = group_view(before, total=20), states_of(before)
        merged = match_naively(mean_keys(view), before - after)
        kept = [group for group in range(before) if group not in merged]
        fused, _ = tofu_naively(list(states), [1.0] * before, merged)
        reduced = policy.reduce(view, states, after)
        assert reduced.index.tolist() == kept
        torch.testing.assert_close(reduced.states, states[kept] if prunes else torch.stack(fused))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 40])
def test_a_frame_shrinks_by_a_step_a_block_until_its_share_is_met(total: int) -> None:
    counts = [total, *ToMe(retain=0.2).schedule(total)]
    assert counts[-1] == max(1, round(0.2 * total))
    for before, after in itertools.pairwise(counts):
        assert after == max(counts[-1], math.floor(0.8 * before))


def test_a_tower_too_shallow_to_merge_as_much_is_refused() -> None:
    assert ToMe(retain=0.35).blocks(32) == range(2, 32)
    with pytest.raises(
        PolicyError, match=r"step=0\.8 cannot reduce to retain=0\.35 in blocks 2 to 5: start earlier, or lower"
    ):
        ToMe(retain=0.35).blocks(6)


# The last image has merged as much as it may, into groups of unlike sizes, while others go on.
UNEVEN = torch.cat([GRID, torch.tensor([[1, 2, 10]])])


def tower_order(name: str, places: torch.Tensor) -> list[int]:
    """Groups [n, 4] of one frame in the order in which the tower runs them: window by window in Qwen2.5-VL."""
    window = 2 * vit_oracle.WINDOW if name == "qwen2_5_vl" else 1 << 20
    keys = [(row // window, column // window, row, column) for _, _, row, column in places.tolist()]
    return sorted(range(len(keys)), key=keys.__getitem__)


def merging(name: str, policy: Any, fuse: Callable[..., Any], prunes: set[int]) -> vit_oracle.Change:
    """What a tower does behind the attention of each block, frame by frame. prunes: blocks that drop."""

    def change(where: str, index: int, patches: vit_oracle.Patches) -> vit_oracle.Patches:
        if where != "attention" or index < policy.start:
            return patches
        rows, states, sizes = [], [], []
        squares = patches.coordinates[::UNIT]
        for frame in squares[:, :2].unique(dim=0):
            own = (squares[:, :2] == frame).all(dim=1).nonzero().squeeze(1)
            own = own[tower_order(name, squares[own])]
            total = int(UNEVEN[frame[0], 1:].prod()) // UNIT
            count = max(policy.kept(total), math.floor(policy.step * len(own)))
            keys = patches.keys.mean(dim=1).view(-1, UNIT, patches.keys.shape[-1]).mean(dim=1)[own].tolist()
            merged = match_naively(keys, len(own) - count) if count < len(own) else {}
            members = list(patches.states.view(-1, UNIT, WIDTH * 2)[own])
            counts = patches.sizes[::UNIT][own].tolist()
            left = [group for group in range(len(own)) if group not in merged]
            drop = index in prunes or not merged
            new = ([members[group] for group in left], [counts[group] for group in left])
            new = new if drop else fuse(members, counts, merged)
            rows += own[left].tolist()
            states += new[0]
            sizes += new[1]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        index_patches = torch.tensor([rows[group] * UNIT + patch for group in order for patch in range(UNIT)])
        return patches.rows(
            index_patches,
            torch.cat([states[group] for group in order]),
            torch.tensor([sizes[group] for group in order]).repeat_interleave(UNIT),
        )

    return change


@each_merging
@pytest.mark.parametrize("name", MROPE)
def test_merging_in_a_tower_equals_merging_by_hand(name: str, policy: Any, fuse: Any, prunes: set[int]) -> None:
    model, grid = tiny_vision(name), UNEVEN
    with torch.no_grad():
        with halting_vision(model, policy) as tower:
            output = model.model.visual(pixels(grid), grid_thw=grid)
        expected = vit_oracle.run(name, model.model.visual, pixels(grid), grid, merging(name, policy, fuse, prunes))
    squares = [tuple(square) for square in vit_oracle.coordinates(grid)[::UNIT].tolist()]
    places = [squares.index(tuple(square)) for square in expected["patches"].coordinates[::UNIT].tolist()]
    left = (~output.pooler_output[:, 0].isnan()).nonzero().squeeze(1).tolist()
    assert left == places
    assert len(tower.report.loads) == 6
    torch.testing.assert_close(output.pooler_output[places], expected["features"], atol=5e-5, rtol=1e-4)
    for deep, (rows, there) in zip(getattr(output, "deepstack_features", ()), expected["deep"].values(), strict=True):
        tapped = [squares.index(tuple(square)) for square in there[::UNIT].tolist()]
        kept = [row for row, place in enumerate(tapped) if place in places]
        torch.testing.assert_close(deep[places], rows[kept], atol=5e-5, rtol=1e-4)
        gone = [place for place in range(len(squares)) if place not in places]
        assert not deep[gone].any()
