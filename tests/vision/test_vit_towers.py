"""ViTs under `halting_vision`: equal to the stock tower where all stays, and to the masking oracle where not."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import PolicyError
from deltahalt.vision import (
    VISION_POLICIES,
    PruMergePlus,
    UniformGroups,
    VisionDash,
    VisionPolicy,
    VisionZip,
    halting_vision,
)
from deltahalt.vision.policy import GroupView
from deltahalt.vision.towers import tower_of
from helpers import vit_oracle
from helpers.memory import Largest
from helpers.tiny_vision import GRID, GROUPS, MROPE, UNIT, pixels, tiny_vision
from helpers.vit_policies import HALTING, LastGroups, keeping


def encode(model: Any, grid: torch.Tensor = GRID, patches: torch.Tensor | None = None) -> Any:
    """What the model's ViT makes of a pack of images."""
    with torch.no_grad():
        return model.model.visual(pixels(grid) if patches is None else patches, grid_thw=grid)


def halted(model: Any, policy: VisionPolicy, *args: torch.Tensor) -> tuple[Any, Any]:
    with halting_vision(model, policy) as tower:
        return encode(model, *args), tower.report


def tensors(output: Any) -> list[torch.Tensor]:
    return [output.last_hidden_state, output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]


def rows_left(output: Any) -> list[int]:
    """Places of the features that are there."""
    gone = output.pooler_output.isnan()
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    return (~gone[:, 0]).nonzero().squeeze(1).tolist()


def places_of(report: Any) -> list[int]:
    """Places of the groups that a report says are kept, in the whole pack."""
    starts = [sum(GROUPS[:image]) for image in range(len(GROUPS))]
    return [start + place for start, kept in zip(starts, report.kept, strict=True) for place in kept.tolist()]


# Nothing halted


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", MROPE)
def test_a_tower_that_keeps_all_equals_the_stock_tower(name: str, policy: Any, attention: str) -> None:
    model = tiny_vision(name, attention)
    expected = tensors(encode(model))
    output, report = halted(model, policy(retain=1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors(output), expected, strict=True))
    assert report.groups == GROUPS
    assert report.loads == report.full_loads
    assert report.speedup_bound == 1


@pytest.mark.parametrize("policy", [VisionZip(contextual=0, retain=0.4), PruMergePlus(neighbours=0, retain=0.4)])
@pytest.mark.parametrize("name", MROPE)
def test_a_feature_that_takes_up_no_other_is_the_stock_feature_of_its_place(name: str, policy: VisionPolicy) -> None:
    """The block that these methods look at is opened, and must compute what it does when closed."""
    model = tiny_vision(name)
    expected, (output, report) = encode(model), halted(model, policy)
    left = rows_left(output)
    assert left == places_of(report)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(output.pooler_output[left], expected.pooler_output[left])


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("qwen2_vl", "000000"), ("qwen2_5_vl", "001001")],  # full attention in blocks 2 and 5, windows in the others
)
def test_kinds_of_blocks_are_numbered_by_first_appearance(name: str, kinds: str) -> None:
    model = tiny_vision(name)
    feed = tower_of(model.config).feed(model.model.visual, pixels(GRID), GRID)
    assert "".join(feed.kinds) == kinds
    assert feed.stream.segments.keys() == {"image", "frame", *kinds}


# Halting, against the oracle


@pytest.mark.parametrize("policy", [*(policy(retain=0.4, start=1) for policy in HALTING), LastGroups(retain=0.4)])
@pytest.mark.parametrize("name", MROPE)
def test_halting_equals_a_tower_whose_deeper_blocks_cannot_read_what_halted(name: str, policy: Any) -> None:
    model = tiny_vision(name)
    output, report = halted(model, policy)
    places = torch.tensor(places_of(report))
    kept = torch.zeros(sum(GROUPS)).index_fill(0, places, 1).repeat_interleave(UNIT)

    def halt(where: str, index: int, patches: vit_oracle.Patches) -> vit_oracle.Patches:
        every = torch.arange(len(kept))
        decides = (where, index) == ("block", policy.start)
        return patches.rows(every, patches.states, kept) if decides else patches

    with torch.no_grad():
        expected = vit_oracle.run(name, model.model.visual, pixels(GRID), GRID, halt)
    assert rows_left(output) == places.tolist()
    torch.testing.assert_close(output.pooler_output[places], expected["features"][places], atol=5e-5, rtol=1e-4)
    for deep, (rows, _) in zip(getattr(output, "deepstack_features", ()), expected["deep"].values(), strict=True):
        torch.testing.assert_close(deep[places], rows[places], atol=5e-5, rtol=1e-4)
        assert not deep[~kept[::UNIT].bool()].any()
    attended = [load.attended for load in report.loads]
    assert attended == [sum(GROUPS)] * (policy.start + 1) + [len(places)] * (5 - policy.start)


@pytest.mark.parametrize("name", MROPE)
def test_a_method_is_shown_what_the_block_computed(name: str) -> None:
    views, seen = [], {}

    @dataclass(frozen=True, kw_only=True)
    class Look(LastGroups):
        def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
            views.append((view, states))
            return super().select(view, states, count)

    model, grid = tiny_vision(name), GRID[:2]
    visual = model.model.visual
    halted(model, Look(start=1), grid)

    def look(where: str, index: int, patches: vit_oracle.Patches) -> vit_oracle.Patches:
        seen[where, index] = patches
        return patches

    with torch.no_grad():
        vit_oracle.run(name, visual, pixels(grid), grid, look)
    entering, between, leaving = seen["block", 0], seen["attention", 1], seen["block", 1]
    start = 0
    for view, states in views:
        order = view.places - start
        rows = (view.places[:, None] * UNIT + torch.arange(UNIT)).flatten()
        places = between.coordinates[rows]
        queries = (
            visual.blocks[1].attn.qkv(visual.blocks[1].norm1(entering.states[rows])).unflatten(1, (3, 2, -1))[:, 0]
        )
        pairs = [
            (view.hidden_in.flatten(0, 1), entering.states[rows]),
            (view.update.flatten(0, 1), (between.states - entering.states)[rows]),
            (states.flatten(0, 1), leaving.states[rows]),
            (view.normed(states).flatten(0, 1), visual.blocks[2].norm1(leaving.states[rows])),
            (view.raw_keys().transpose(0, 1), between.keys[rows]),
            (view.keys().transpose(0, 1), vit_oracle.rotated(between.keys[rows], places)),
            (view.queries().transpose(0, 1), vit_oracle.rotated(queries, places)),
        ]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)
        assert order.sort().values.tolist() == list(range(view.total))
        seen_together = vit_oracle.visible(name, visual, 1, places[::UNIT])
        runs = torch.arange(len(view.segments)).repeat_interleave(torch.tensor(view.segments))
        assert torch.equal(runs[:, None] == runs, seen_together)
        assert view.scaling == visual.blocks[1].attn.scaling
        start += view.total


@pytest.mark.parametrize("name", MROPE)
def test_states_of_the_last_block_come_in_the_tower_s_own_order(name: str) -> None:
    model = tiny_vision(name)
    with torch.no_grad():
        output, _ = halted(model, UniformGroups(start=1))
        states = output.last_hidden_state
        whole = ~states.isnan().any(dim=1)
        merged = model.model.visual.merger(states[whole])
    left = output.pooler_output[rows_left(output)]
    assert whole.sum() == UNIT * len(left)
    distance = torch.cdist(merged, left).min(dim=1)
    assert distance.values.max() < 1e-3
    if name != "qwen2_5_vl":
        assert torch.equal(distance.indices, torch.arange(len(left)))


def test_a_method_that_leaves_another_number_than_it_said_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class OneTooMany(LastGroups):
        def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
            return super().select(view, states, count + 1)

    with pytest.raises(PolicyError, match=r"an index of shape \[7\]; it must keep 6 groups"):
        halted(tiny_vision(), OneTooMany())


# Positions


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", MROPE)
def test_kept_features_stand_at_their_own_mrope_coordinates(name: str, policy: Any) -> None:
    """The placeholder that a feature goes to has the row and column of its group."""
    model, grid = tiny_vision(name), GRID[[0, 1]]
    output, report = halted(model, keeping(policy, 0.4), grid)
    image, config = model.config.image_token_id, model.config
    start, end = config.vision_start_token_id, config.vision_end_token_id
    ids = torch.tensor([[5, start, *[image] * 12, end, 6, start, *[image] * 4, end, 7]])
    kinds = (ids == image).int()
    if "mm_token_type_ids" in model.model.get_rope_index.__code__.co_varnames:
        planes = model.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0]
    else:
        planes = model.model.get_rope_index(ids, image_grid_thw=grid)[0]
    planes = planes[:, 0, kinds[0].bool()]  # [3, placeholders]
    squares = vit_oracle.coordinates(grid)[::UNIT]
    for number, (kept, first, total) in enumerate(zip(report.kept, (0, 12), (12, 4), strict=True)):
        own = planes[1:, first : first + total] - planes[1:, first : first + 1]
        there = [place - first for place in rows_left(output) if first <= place < first + total]
        assert there == kept.tolist()
        assert torch.equal(own[:, kept].T, squares[squares[:, 0] == number][kept, 2:] // 2)


# Every policy


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", MROPE)
def test_an_image_is_encoded_the_same_alone_and_in_a_pack(name: str, policy: Any) -> None:
    model, start = tiny_vision(name), 0
    chosen = keeping(policy, 0.35)
    output, report = halted(model, chosen)
    for image, groups in enumerate(GROUPS):
        own = slice(start, start + groups)
        patches = pixels(GRID)[own.start * UNIT : own.stop * UNIT]
        alone, report_alone = halted(model, chosen, GRID[image : image + 1], patches)
        assert torch.equal(report.kept[image], report_alone.kept[0])
        torch.testing.assert_close(output.pooler_output[own], alone.pooler_output, equal_nan=True, atol=1e-5, rtol=1e-5)
        start += groups


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", MROPE)
def test_every_image_keeps_a_feature(name: str, policy: Any) -> None:
    first = policy.start if policy.cut == "features" else 0
    output, report = halted(tiny_vision(name), keeping(policy, 0.05, start=first))
    frames = 2 if policy.unit == "frame" else 1
    assert [len(kept) for kept in report.kept] == [1, 1, frames, 1]
    assert rows_left(output) == places_of(report)


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
def test_the_count_is_the_share_of_each_image(policy: Any) -> None:
    _, report = halted(tiny_vision(), keeping(policy, 0.35))
    assert [len(kept) for kept in report.kept] == [4, 1, 8, 1]  # of 12, 4, two frames of 12, and 1


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
def test_half_precision(policy: Any) -> None:
    model = tiny_vision("qwen3_vl").to(torch.bfloat16)
    with halting_vision(model, keeping(policy, 0.35)):
        output = encode(model, GRID, pixels(GRID).to(torch.bfloat16))
    assert output.pooler_output.dtype == torch.bfloat16
    assert len(rows_left(output)) == 14


# FLOPs


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", MROPE)
def test_the_report_counts_the_flops_that_torch_counts(name: str, policy: Any) -> None:
    """All but the methods' own: scores and similarities."""
    model = tiny_vision(name, "eager")
    with FlopCounterMode(display=False) as stock:
        encode(model)
    products = sdpa_kernel(SDPBackend.MATH)  # ToMe's attention too, in steps that are counted
    with halting_vision(model, keeping(policy, 0.35)) as tower, products, FlopCounterMode(display=False) as counted:
        encode(model)
    report = tower.report
    assert report.full_flops == stock.get_total_flops()
    own = counted.get_total_flops() - report.flops
    assert 0 <= own < 0.03 * report.full_flops
    if policy in (VisionDash, UniformGroups):
        assert own == 0


# FlashAttention, whose kernels no CPU has: its conventions, written out


def flash_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, **options: Any
) -> tuple[torch.Tensor, None]:
    """[1, heads, S, d] in runs between `cu_seq_lens_q` -> [1, S, heads, d]."""
    borders = options["cu_seq_lens_q"]
    assert borders.dtype == torch.int32
    lengths = borders.diff()
    assert int(borders[-1]) == query.shape[2]
    assert int(options["max_length_q"]) == int(options["max_length_k"]) == int(lengths.max())
    parts = [part.split(lengths.tolist(), dim=2) for part in (query, key, value)]
    mixed = [(q @ k.transpose(2, 3) * scaling).softmax(dim=-1) @ v for q, k, v in zip(*parts, strict=True)]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("policy", ["vision-dash", "tome", "prumerge-plus"])
@pytest.mark.parametrize("name", MROPE)
def test_flash_attention(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)
    model = tiny_vision(name)
    expected, _ = halted(model, keeping(VISION_POLICIES[policy], 0.35))
    model.model.visual.config._attn_implementation = "flash_attention_2"
    output, _ = halted(model, keeping(VISION_POLICIES[policy], 0.35))
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, equal_nan=True, atol=1e-5, rtol=1e-5)


# Memory


def largest_tensor(policy: VisionPolicy, rows: int) -> int:
    model = tiny_vision(tower={"depth": 4})
    grid = torch.tensor([[1, rows, 32]])
    with halting_vision(model, policy), Largest() as largest:
        encode(model, grid)
    return largest.elements


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
def test_memory_grows_with_the_image_and_not_with_its_square(policy: Any) -> None:
    small, large = (largest_tensor(policy(retain=0.7), rows) for rows in (48, 96))
    assert large < 2.2 * small
    assert large < (96 * 32) ** 2 / 8
