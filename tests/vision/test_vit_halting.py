"""ViT-stage methods that halt, and the attention that a token receives, against naive references."""

import math
from dataclasses import replace

import pytest
import torch

from deltahalt import PolicyError
from deltahalt.vision import (
    DartViT,
    RandomGroups,
    UniformGroups,
    VisionDash,
)
from deltahalt.vision import attention as attention_module
from deltahalt.vision.attention import vit_received_attention
from helpers.group_views import HEADS, UNIT, WIDTH, group_view, states_of
from helpers.vit_naive import (
    dart_naively,
    norm,
    received_naively,
)


def test_vision_dash_scores_the_mean_norm_of_a_group_s_updates() -> None:
    view = group_view(9)
    expected = [sum(norm(patch) for patch in group) / UNIT for group in view.update.tolist()]
    assert VisionDash().score(view).tolist() == pytest.approx(expected)


def test_norms_of_half_precision_updates_do_not_overflow() -> None:
    large = torch.full((3, UNIT, WIDTH), 60_000.0, dtype=torch.float16)
    scores = VisionDash().score(group_view(3, update=large))
    assert scores.tolist() == pytest.approx([60_000 * math.sqrt(WIDTH)] * 3, rel=1e-3)


def test_updates_that_are_nan_are_refused() -> None:
    view = group_view(3, update=torch.full((3, UNIT, WIDTH), torch.nan))
    with pytest.raises(PolicyError, match="vision-dash scored some tokens as NaN"):
        VisionDash().reduce(view, states_of(3), 2)


@pytest.mark.parametrize(("pivots", "count"), [(4, 10), (4, 11), (1, 5), (3, 3), (5, 19)])
def test_dart_keeps_pivots_and_what_is_least_like_them(pivots: int, count: int) -> None:
    view, states = group_view(20), states_of(20)
    index = DartViT(pivots=pivots).select(view, states, count)
    assert index.tolist() == dart_naively(view, states, pivots, count)


def test_dart_has_no_more_pivots_than_groups_to_keep() -> None:
    view, states = group_view(20), states_of(20)
    assert DartViT(pivots=4).select(view, states, 2).tolist() == dart_naively(view, states, 2, 2)


def test_dart_compares_states_under_the_next_block_s_norm() -> None:
    view, states = group_view(20), states_of(20)
    shifted = replace(view, normed=lambda states: states - 3)
    assert DartViT().select(shifted, states + 3, 10).tolist() == dart_naively(view, states, 4, 10)


def test_random_draws_the_same_places_whatever_the_tower_s_order() -> None:
    view, order = group_view(20), torch.randperm(20, generator=torch.Generator().manual_seed(3))
    kept = view.places[RandomGroups(seed=1).select(view, states_of(20), 7)]
    shuffled = replace(view, places=view.places[order])
    assert shuffled.places[RandomGroups(seed=1).select(shuffled, states_of(20), 7)].sort().values.equal(kept)
    assert not view.places[RandomGroups(seed=2).select(view, states_of(20), 7)].equal(kept)


def test_uniform_keeps_even_distances_in_raster_order() -> None:
    places = torch.tensor([8, 7, 10, 9, 12, 11])
    index = UniformGroups().select(group_view(6, places=places), states_of(6), 3)
    assert places[index].sort().values.tolist() == [8, 10, 12]


@pytest.mark.parametrize("segments", [(12,), (5, 7), (1, 4, 4, 3)])
@pytest.mark.parametrize("queries", [3, 16, 128])
def test_received_attention_is_the_column_sum_of_the_matrix(
    segments: tuple[int, ...], queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "QUERIES", queries)
    view = group_view(12, segments=segments)
    received = vit_received_attention(view)
    assert received.tolist() == pytest.approx(received_naively(view), rel=1e-4)
    assert received.sum().item() == pytest.approx(12 * UNIT, rel=1e-4)


def test_received_attention_of_half_precision_does_not_overflow() -> None:
    heads = torch.full((HEADS, 3 * UNIT, 8), 100.0, dtype=torch.float16)  # q.k is 80,000, beyond float16
    assert vit_received_attention(group_view(3, queries=heads, keys=heads)).tolist() == pytest.approx([UNIT] * 3)
