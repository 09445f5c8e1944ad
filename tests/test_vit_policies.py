"""Each ViT-stage method against a reference written out plainly, and what its own options do."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import vit_oracle
from deltahalt import PolicyError
from deltahalt.vision import (
    VISION_POLICIES,
    DartViT,
    PruMergePlus,
    RandomGroups,
    ToFu,
    ToMe,
    UniformGroups,
    VisionDash,
    VisionPolicy,
    VisionZip,
    halting_vision,
    parse_vision_policy,
)
from deltahalt.vision import attention as attention_module
from deltahalt.vision.attention import received_attention
from deltahalt.vision.merging import match
from deltahalt.vision.policy import GroupView
from group_views import HEADS, UNIT, WIDTH, group_view, states_of
from tiny_vision import GRID, MROPE, pixels, tiny_vision


def norm(row: list[float]) -> float:
    return math.sqrt(sum(value * value for value in row))


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (norm(one) * norm(other))


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def mean_keys(view: GroupView) -> list[list[float]]:
    """Raw keys averaged over heads and over the patches of a group, [n][d]."""
    heads = view.raw_keys().tolist()
    patches = [mean([head[patch] for head in heads]) for patch in range(len(heads[0]))]
    return [mean(patches[first : first + UNIT]) for first in range(0, len(patches), UNIT)]


# --- every method ---


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
    with pytest.raises(PolicyError, match=f"starts at block {start}; this tower allows 0 to"):
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
        ("dash", "there is no policy 'dash'; choose one of vision-dash, dart-vit, tome"),
        ("tome:pivots=3", "tome has no option 'pivots'; it has retain, start, step"),
        ("tome:retain=half", "tome option retain is 'half'; it must be a number"),
    ],
)
def test_text_that_names_no_method_or_option_is_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_vision_policy(text)


# --- halting: DASH, DART, random, uniform ---


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


def dart_naively(view: GroupView, states: torch.Tensor, pivots: int, count: int) -> list[int]:
    keys = view.keys().tolist()
    norms = [sum(abs(value) for head in keys for value in head[patch]) for patch in range(len(keys[0]))]
    groups = [sum(norms[first : first + UNIT]) for first in range(0, len(norms), UNIT)]
    features = [mean(group) for group in states.tolist()]
    chosen = sorted(range(len(groups)), key=lambda group: -groups[group])[:pivots]
    shares = [(count - pivots) // pivots + (turn < (count - pivots) % pivots) for turn in range(pivots)]
    for pivot, share in zip(list(chosen), shares, strict=True):
        pool = [group for group in range(len(groups)) if group not in chosen]
        chosen += sorted(pool, key=lambda group: cosine(features[group], features[pivot]))[:share]
    return sorted(chosen)


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


# --- attention received ---


def received_naively(view: GroupView) -> list[float]:
    """The whole matrix of each head and segment, summed over queries and over a group's patches."""
    received, first = [], 0
    for groups in view.segments:
        own = slice(first, first := first + groups * UNIT)
        logits = view.queries()[:, own] @ view.keys()[:, own].transpose(1, 2) * view.scaling
        received += logits.softmax(dim=-1).sum(dim=1).mean(dim=0).view(groups, UNIT).sum(dim=1).tolist()
    return received


@pytest.mark.parametrize("segments", [(12,), (5, 7), (1, 4, 4, 3)])
@pytest.mark.parametrize("queries", [3, 16, 128])
def test_received_attention_is_the_column_sum_of_the_matrix(
    segments: tuple[int, ...], queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "QUERIES", queries)
    view = group_view(12, segments=segments)
    received = received_attention(view)
    assert received.tolist() == pytest.approx(received_naively(view), rel=1e-4)
    assert received.sum().item() == pytest.approx(12 * UNIT, rel=1e-4)


def test_received_attention_of_half_precision_does_not_overflow() -> None:
    heads = torch.full((HEADS, 3 * UNIT, 8), 100.0, dtype=torch.float16)  # q.k is 80,000, beyond float16
    assert received_attention(group_view(3, queries=heads, keys=heads)).tolist() == pytest.approx([UNIT] * 3)


# --- VisionZip ---


def visionzip_naively(
    attention: list[float], keys: list[list[float]], states: torch.Tensor, count: int, targets: int
) -> dict[int, torch.Tensor]:
    """States of the groups that stay: the most attended, and every so-many-th other plus the mean of those like it."""
    order = sorted(range(len(attention)), key=lambda group: -attention[group])
    rest = sorted(order[count - targets :])
    standing = [rest[place * (len(rest) // targets)] for place in range(targets)]
    taken: dict[int, list[int]] = {group: [] for group in standing}
    for group in rest:
        if group not in taken:
            taken[max(standing, key=lambda target: cosine(keys[group], keys[target]))].append(group)
    kept = {group: states[group] for group in order[: count - targets]}
    for group, others in taken.items():
        kept[group] = states[group] + (torch.stack([states[other] for other in others]).mean(dim=0) if others else 0)
    return dict(sorted(kept.items()))


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


# --- PruMerge+ ---


def choose_naively(attention: list[float], count: int) -> list[int]:
    """Groups in raster order: outliers, most attended first, then the middles of equal spans of the others."""
    sorted_attention = sorted(attention)

    def quantile(share: float) -> float:
        place = share * (len(attention) - 1)
        below = math.floor(place)
        above = min(below + 1, len(attention) - 1)
        return sorted_attention[below] + (place - below) * (sorted_attention[above] - sorted_attention[below])

    bar = quantile(0.75) + 1.5 * (quantile(0.75) - quantile(0.25))
    order = sorted(range(len(attention)), key=lambda group: -attention[group])
    outliers = [group for group in order if attention[group] > bar][:count]
    others = [group for group in range(len(attention)) if group not in outliers]
    need = count - len(outliers)
    return sorted(outliers + [others[(2 * step + 1) * len(others) // (2 * need)] for step in range(need)])


def prumerge_naively(
    attention: list[float], keys: list[list[float]], states: torch.Tensor, count: int, neighbours: int
) -> dict[int, torch.Tensor]:
    """States of the groups that stay, each plus its nearest others by their share of attention."""
    shares, kept = [value / sum(attention) for value in attention], {}
    for group in choose_naively(shares, count):
        others = [other for other in range(len(shares)) if other != group]
        nearest = sorted(others, key=lambda other: -cosine(keys[other], keys[group]))[:neighbours]
        kept[group] = states[group] + sum(shares[other] * states[other] for other in nearest)
    return kept


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


# --- ToMe and ToFu ---


def match_naively(metric: list[list[float]], merges: int) -> dict[int, int]:
    """Which group merges into which."""
    even, odd = range(0, len(metric), 2), range(1, len(metric), 2)
    best = {group: max(odd, key=lambda other: cosine(metric[group], metric[other])) for group in even}
    closest = sorted(even, key=lambda group: -cosine(metric[group], metric[best[group]]))
    return {group: best[group] for group in closest[:merges]}


@pytest.mark.parametrize(("n", "merges"), [(2, 1), (3, 2), (12, 3), (13, 7)])
def test_every_other_group_merges_into_the_most_similar_of_those_between(n: int, merges: int) -> None:
    metric = states_of(n, 5)
    matching = match(metric, merges)
    expected = match_naively(metric.tolist(), merges)
    assert dict(zip(matching.sources.tolist(), matching.targets.tolist(), strict=True)) == expected
    assert matching.kept.tolist() == [group for group in range(n) if group not in expected]


def tome_naively(
    members: list[torch.Tensor], sizes: list[float], merged: dict[int, int]
) -> tuple[list[torch.Tensor], list[float]]:
    """Means weighted by size, and the sizes that come of them."""
    states, counts = [], []
    for group in range(len(members)):
        if group not in merged:
            meeting = [group, *(source for source, target in merged.items() if target == group)]
            counts.append(sum(sizes[one] for one in meeting))
            states.append(sum(members[one] * sizes[one] for one in meeting) / counts[-1])
    return states, counts


def tofu_naively(
    members: list[torch.Tensor], sizes: list[float], merged: dict[int, int]
) -> tuple[list[torch.Tensor], list[float]]:
    """Means as long as the longest that meets in them, patch by patch."""
    states = []
    for group in range(len(members)):
        if group not in merged:
            meeting = torch.stack([members[one] for one in (group, *(s for s, t in merged.items() if t == group))])
            average = meeting.mean(dim=0)
            longest = meeting.norm(dim=-1).max(dim=0).values
            states.append(average / average.norm(dim=-1, keepdim=True) * longest[:, None])
    return states, [1.0] * len(states)


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
        PolicyError, match=r"cannot come down to retain=0\.35 in blocks 2 to 5: start earlier, or lower"
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


each_merging = pytest.mark.parametrize(
    ("policy", "fuse", "prunes"),
    [
        (ToMe(retain=0.3, start=1, step=0.7), tome_naively, set()),
        (ToFu(retain=0.3, start=1, step=0.7), tofu_naively, {1}),
    ],
    ids=["tome", "tofu"],
)


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
