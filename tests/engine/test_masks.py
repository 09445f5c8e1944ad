"""The mask of one run of layers against visibility tried pair by pair, in each attention function's terms."""

import itertools
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltahalt.engine.masks import attention_mask
from deltahalt.host.compat import blocks_cross_windows

property_of = settings(max_examples=100, deadline=None, derandomize="CI" in os.environ)

PAD = -1
WHOLE = [[0, 1, 2, 3, 4, 5]]
PADDED = [[PAD, PAD, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
GAPS = [[0, 3, 4, 9, 10, 15]]


def visible_pairs(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """[B, q, k]: whether the query sees the key, tried one by one."""
    seen = torch.zeros(*queries.shape, keys.shape[1], dtype=torch.bool)
    for row in range(len(queries)):
        for i, query in enumerate(queries[row].tolist()):
            for j, key in enumerate(keys[row].tolist()):
                near = window is None or query - key < window
                seen[row, i, j] = key != PAD and key <= query and near
    return seen


def what_the_host_sees(mask: torch.Tensor | None, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[B, q, k] of a mask for sdpa. Without one, a lone query sees every key, else query i the first i+1."""
    if mask is not None:
        return mask.squeeze(1)
    rows, asked, held = *queries.shape, keys.shape[1]
    plain = torch.ones(asked, held, dtype=torch.bool)
    return (plain if asked == 1 else plain.tril()).expand(rows, -1, -1)


def mask_of(keys: list[list[int]], last: int, **options: Any) -> torch.Tensor | None:
    """The mask for the last `last` of `keys` as queries; whether there is padding is read off them."""
    slots = torch.tensor(keys)
    given = {"window": None, "attention": "sdpa", "dtype": torch.float32} | options
    return attention_mask(slots[:, -last:], slots, padded=bool((slots == PAD).any()), **given)


# --- sdpa ---


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("last", [1, 2, 6], ids=["one", "some", "all"])
@pytest.mark.parametrize(
    "keys",
    [
        WHOLE,
        PADDED,
        GAPS,
        [[PAD, 0, 3, 4, 9, 10, 15], [0, 1, 3, 8, 9, 10, 15]],
        [[5, 6, 7, 0, 1, 8, 9], [1, 6, 7, 0, 5, 8, 9]],
        [[PAD, 5, 7, PAD, 4, 8, 9], [1, 3, 7, 0, 5, 8, 9]],
    ],
    ids=["whole", "padded", "gaps", "padded-gaps", "frozen-first", "padded-frozen-first"],
)
def test_each_query_sees_what_it_may_and_nothing_else(keys: list[list[int]], last: int, window: int | None) -> None:
    slots = torch.tensor(keys)
    queries = slots[:, -last:]
    seen = what_the_host_sees(mask_of(keys, last, window=window), queries, slots)
    assert seen.equal(visible_pairs(queries, slots, window))


@st.composite
def rows_of_slots(draw: st.DrawFn) -> list[list[int]]:
    """Rows of ascending columns with gaps, right-aligned after padding; each holds a token."""
    width = draw(st.integers(1, 8))
    rows = draw(st.lists(st.sets(st.integers(0, 20), min_size=1, max_size=width), min_size=1, max_size=3))
    return [[PAD] * (width - len(row)) + sorted(row) for row in rows]


@property_of
@given(rows_of_slots(), st.integers(1, 8), st.none() | st.integers(1, 20))
def test_any_compacted_batch_is_masked_pair_by_pair(keys: list[list[int]], last: int, window: int | None) -> None:
    slots = torch.tensor(keys)
    queries = slots[:, -last:]
    seen = what_the_host_sees(mask_of(keys, last, window=window), queries, slots)
    assert seen.equal(visible_pairs(queries, slots, window))


@pytest.mark.parametrize(
    ("keys", "last", "window", "plain"),
    [
        (WHOLE, 6, None, True),
        (GAPS, 6, None, True),
        (GAPS, 1, None, True),
        (WHOLE, 2, None, False),
        (PADDED, 6, None, False),
        (PADDED, 1, None, False),
        (WHOLE, 6, 3, False),
        (GAPS, 1, 3, False),
    ],
)
def test_sdpa_gets_no_mask_exactly_where_it_would_do_right_by_itself(
    keys: list[list[int]], last: int, window: int | None, plain: bool
) -> None:
    assert (mask_of(keys, last, window=window) is None) == plain


def test_an_sdpa_mask_has_one_plane_for_all_heads() -> None:
    mask = mask_of(PADDED, 2)
    assert mask is not None
    assert mask.shape == (2, 1, 2, 6)
    assert mask.dtype == torch.bool


# --- blocks, within which tokens see later ones too ---

IMAGES = [[-1, 0, 0, 0, -1, 1, 1, -1, -1, 2, 2, 2, 2, -1, -1, -1]]  # by column


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 2, 3])
@pytest.mark.parametrize("last", [1, 4, 6])
@pytest.mark.parametrize(
    "keys", [[[0, 1, 2, 3, 5, 6]], [[PAD, 1, 3, 9, 11, 12], [PAD, PAD, 2, 3, 4, 5]], GAPS], ids=str
)
def test_tokens_of_a_block_see_each_other(keys: list[list[int]], last: int, window: int | None, attention: str) -> None:
    table = torch.tensor(IMAGES * len(keys))

    def block_of(slots: torch.Tensor) -> torch.Tensor:
        return table.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)

    slots = torch.tensor(keys)
    queries = slots[:, -last:]
    mask = mask_of(keys, last, window=window, attention=attention, block_of=block_of)
    assert mask is not None
    seen = mask.squeeze(1) if attention == "sdpa" else mask.squeeze(1) == 0
    for row, query, key in itertools.product(range(len(keys)), range(last), range(slots.shape[1])):
        reader, read = int(queries[row, query]), int(slots[row, key])
        together = reader >= 0 and read >= 0 and IMAGES[0][reader] == IMAGES[0][read] >= 0
        near = window is None or reader - read < window
        causal = read <= reader
        expected = (causal and near) or together if blocks_cross_windows() else (causal or together) and near
        assert bool(seen[row, query, key]) == (read >= 0 and expected)


# --- eager ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("keys", [WHOLE, PADDED, GAPS], ids=["whole", "padded", "gaps"])
def test_eager_adds_nothing_where_a_key_is_seen_and_the_lowest_number_elsewhere(
    keys: list[list[int]], window: int | None, dtype: torch.dtype
) -> None:
    slots = torch.tensor(keys)
    mask = mask_of(keys, 6, window=window, attention="eager", dtype=dtype)
    hidden = torch.full((len(keys), 1, 6, 6), torch.finfo(dtype).min, dtype=dtype)
    assert mask is not None
    assert mask.dtype == dtype
    assert mask.equal(hidden.masked_fill(visible_pairs(slots, slots, window)[:, None], 0))


def test_eager_gets_a_mask_even_for_one_query_that_sees_all() -> None:
    mask = mask_of(WHOLE, 1, attention="eager")
    assert mask is not None
    assert mask.tolist() == [[[[0.0] * 6]]]


# --- FlashAttention ---

flash = pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])


@flash
@pytest.mark.parametrize("last", [1, 6])
def test_flash_attention_is_told_which_keys_are_padding(attention: str, last: int) -> None:
    mask = mask_of(PADDED, last, attention=attention)
    assert mask is not None
    assert mask.tolist() == [[False, False, True, True, True, True], [True] * 6]


@flash
def test_flash_attention_needs_no_mask_without_padding(attention: str) -> None:
    assert mask_of(GAPS, 6, attention=attention) is None


@flash
def test_flash_attention_measures_the_windows_of_a_whole_prompt_itself(attention: str) -> None:
    assert mask_of(WHOLE, 6, attention=attention, window=3) is None
