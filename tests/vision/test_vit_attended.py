"""VisionZip and PruMerge+ against naive references."""

import pytest
import torch

from deltahalt.vision import (
    PruMergePlus,
    VisionZip,
)
from helpers.group_views import UNIT, group_view, states_of
from helpers.vit_naive import choose_naively, mean_keys, prumerge_naively, received_naively, visionzip_naively


@pytest.mark.parametrize(("count", "contextual", "targets"), [(20, 0.15625, 3), (7, 0.15625, 1), (12, 0.5, 6)])
def test_visionzip_keeps_the_most_attended_and_has_some_of_the_rest_stand_for_it(
    count: int, contextual: float, targets: int
) -> None:
    view, states = group_view(30), states_of(30, 1, 24)
    expected = visionzip_naively(received_naively(view), mean_keys(view), states, count, targets)
    reduced = VisionZip(contextual=contextual).reduce(view, states, count)
    assert reduced.index.tolist() == list(expected)
    torch.testing.assert_close(reduced.states, torch.stack(list(expected.values())))


def test_visionzip_looks_for_those_that_stand_for_the_rest_in_raster_order() -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    view, states = group_view(30), states_of(30, 1, 24)
    heads = {name: getattr(view, name)().unflatten(1, (30, UNIT)) for name in ("queries", "keys", "raw_keys")}
    shuffled = group_view(30, places=order, **{name: part[:, order].flatten(1, 2) for name, part in heads.items()})
    expected = VisionZip().reduce(view, states, 20)
    reduced = VisionZip().reduce(shuffled, states[order], 20)
    raster = order[reduced.index].argsort()
    assert torch.equal(order[reduced.index][raster], expected.index)
    torch.testing.assert_close(reduced.states[raster], expected.states)


def test_visionzip_has_none_stand_for_the_rest_where_few_are_kept() -> None:
    view, states = group_view(30), states_of(30, 1, 24)
    reduced = VisionZip().reduce(view, states, 5)
    best = torch.tensor(received_naively(view)).argsort(descending=True)[:5].sort().values
    assert torch.equal(reduced.index, best)
    assert torch.equal(reduced.states, states[best])


def outstanding(n: int, outliers: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    attention = 1 + 0.1 * torch.rand(n, generator=generator)
    attention[torch.randperm(n, generator=generator)[:outliers]] *= torch.linspace(5, 9, outliers)
    return attention / attention.sum()


@pytest.mark.parametrize(("outliers", "count"), [(0, 6), (3, 10), (5, 5), (6, 4), (3, 29)])
def test_prumerge_plus_fills_outliers_up_over_the_image(outliers: int, count: int) -> None:
    attention = outstanding(30, outliers)
    index = PruMergePlus().choose(attention, torch.arange(30), count)
    assert index.tolist() == choose_naively(attention.tolist(), count)


def test_prumerge_plus_fills_up_in_raster_order() -> None:
    attention, order = outstanding(30, 3), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    index = PruMergePlus().choose(attention[order], order.argsort(), 10)
    assert order[index].sort().values.tolist() == choose_naively(attention.tolist(), 10)


@pytest.mark.parametrize("neighbours", [0, 3, 32])
def test_prumerge_plus_adds_the_nearest_others_by_their_share_of_attention(neighbours: int) -> None:
    """Each feature comes with its own index: the published code sorts the positions and not the features."""
    view, states = group_view(30), states_of(30, 1, 24)
    expected = prumerge_naively(received_naively(view), mean_keys(view), states, 10, neighbours)
    reduced = PruMergePlus(neighbours=neighbours).reduce(view, states, 10)
    assert reduced.index.tolist() == list(expected)
    torch.testing.assert_close(reduced.states, torch.stack(list(expected.values())))
