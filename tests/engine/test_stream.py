"""The one gather of the library: what `keep` takes along, and how `spread` puts it back."""

from dataclasses import replace

import torch

from deltahalt.engine.stream import TokenStream

SIZE = 3


def stream_of(*lengths: int, rotary_rows: int = 1) -> TokenStream:
    """Rows of `lengths` tokens, right-aligned; every number in it tells its row and column."""
    rows, width = len(lengths), max(lengths)
    column = torch.arange(width).expand(rows, -1)
    padding = column < width - torch.tensor(lengths)[:, None]
    place = 100 * torch.arange(rows)[:, None] + column  # row 1, column 5: 105
    cos = (100 * torch.arange(rotary_rows)[:, None] + torch.arange(width))[..., None].expand(-1, -1, 2).float()
    return TokenStream(
        hidden=place[..., None].expand(-1, -1, SIZE).float().masked_fill(padding[..., None], 0),
        slots=column.masked_fill(padding, -1),
        lengths=lengths,
        rotary={"": (cos, -cos)},
    )


def indices(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.long) for row in rows]


# --- keep ---


def test_one_row_keeps_the_chosen_tokens_in_order() -> None:
    kept = stream_of(6).keep(indices([0, 2, 5]))
    assert kept.slots.tolist() == [[0, 2, 5]]
    assert kept.hidden[..., 0].tolist() == [[0, 2, 5]]
    assert kept.lengths == (3,)


def test_an_index_counts_a_row_s_own_tokens_and_not_its_padding() -> None:
    kept = stream_of(6, 4).keep(indices([1, 2], [0, 3]))
    assert kept.slots.tolist() == [[1, 2], [2, 5]]
    assert kept.hidden[..., 0].tolist() == [[1, 2], [102, 105]]


def test_rows_that_keep_fewer_tokens_are_padded_on_the_left() -> None:
    kept = stream_of(6, 6).keep(indices([0, 2, 5], [4]))
    assert kept.slots.tolist() == [[0, 2, 5], [-1, -1, 4]]
    assert kept.hidden[..., 0].tolist() == [[0, 2, 5], [0, 0, 104]]
    assert kept.lengths == (3, 1)
    assert kept.padded


def test_a_batch_loses_its_padding_when_all_rows_keep_as_many() -> None:
    before = stream_of(6, 4)
    after = before.keep(indices([1, 2], [0, 3]))
    assert (before.padded, after.padded) == (True, False)


def test_padding_is_zero_even_where_every_hidden_state_is_nan() -> None:
    stream = stream_of(6, 6)
    kept = stream.advance(torch.full_like(stream.hidden, torch.nan)).keep(indices([0, 2, 5], [4]))
    assert kept.hidden[1, :2].eq(0).all()
    assert kept.hidden[1, 2].isnan().all()


def test_a_row_may_keep_nothing() -> None:
    kept = stream_of(6, 6).keep(indices([0, 5], []))
    assert kept.slots.tolist() == [[0, 5], [-1, -1]]
    assert kept.hidden[1].eq(0).all()
    assert kept.lengths == (2, 0)


def test_a_second_keep_counts_what_the_first_left() -> None:
    kept = stream_of(6, 6).keep(indices([0, 2, 5], [3, 4])).keep(indices([1, 2], [0, 1]))
    assert kept.slots.tolist() == [[2, 5], [3, 4]]


def test_keep_leaves_the_stream_that_it_is_taken_from() -> None:
    stream = stream_of(6, 4)
    stream.keep(indices([0], [1, 2]))
    assert stream.hidden.equal(stream_of(6, 4).hidden)
    assert stream.slots.equal(stream_of(6, 4).slots)


def test_rotary_of_one_row_serves_every_row_of_the_batch() -> None:
    cos, sin = stream_of(6, 4, rotary_rows=1).keep(indices([1, 2], [0, 3])).rotary[""]
    assert cos[..., 0].tolist() == [[1, 2], [2, 5]]
    assert sin.equal(-cos)


def test_rotary_of_each_row_is_gathered_from_that_row() -> None:
    cos, sin = stream_of(6, 4, rotary_rows=2).keep(indices([1, 2], [0, 3])).rotary[""]
    assert cos[..., 0].tolist() == [[1, 2], [102, 105]]
    assert sin.equal(-cos)


def test_rotary_of_every_kind_of_layer_is_gathered() -> None:
    stream = stream_of(6)
    cos, sin = stream.rotary[""]
    both = TokenStream(stream.hidden, stream.slots, stream.lengths, {"near": (cos, sin), "far": (cos + 50, sin)})
    kept = both.keep(indices([1, 4])).rotary
    assert kept["near"][0][..., 0].tolist() == [[1, 4]]
    assert kept["far"][0][..., 0].tolist() == [[51, 54]]


# --- what follows ---


def test_the_prompts_without_trailing_tokens_keep_their_padding() -> None:
    first = replace(stream_of(6, 4, rotary_rows=2), trailing=2).prompt
    assert first.slots.tolist() == [[0, 1, 2, 3], [-1, -1, 2, 3]]
    assert first.hidden[..., 0].tolist() == [[0, 1, 2, 3], [0, 0, 102, 103]]
    assert first.lengths == (4, 2)
    assert first.rotary[""][1][..., 0].tolist() == [[0, -1, -2, -3], [-100, -101, -102, -103]]


def test_tokens_that_follow_come_last() -> None:
    whole = stream_of(6, 4, rotary_rows=2)
    later = TokenStream(
        whole.hidden[:, 4:], whole.slots[:, 4:], (2, 2), {"": (whole.rotary[""][0][:, 4:], whole.rotary[""][1][:, 4:])}
    )
    joined = replace(whole, trailing=2).prompt.followed_by(later)
    assert joined.trailing == 2
    assert torch.equal(joined.hidden, whole.hidden)
    assert torch.equal(joined.slots, whole.slots)
    assert joined.lengths == whole.lengths
    assert all(torch.equal(part, own) for part, own in zip(joined.rotary[""], whole.rotary[""], strict=True))


def test_trailing_tokens_are_kept_with_any_choice_of_the_prompts() -> None:
    stream = replace(stream_of(6, 4), trailing=2)
    kept = stream.keep(indices([0, 3], [1]))
    assert kept.slots.tolist() == [[0, 3, 4, 5], [-1, 3, 4, 5]]
    assert kept.trailing == 2
    assert kept.prompt.lengths == (2, 1)


# --- spread ---


def test_spread_puts_kept_tokens_back_into_their_columns() -> None:
    stream = stream_of(6, 4)
    kept = stream.keep(indices([0, 2, 5], [1, 3]))
    full = kept.spread(0, 6)
    assert full[0, [0, 2, 5]].equal(stream.hidden[0, [0, 2, 5]])
    assert full[1, [3, 5]].equal(stream.hidden[1, [3, 5]])


def test_spread_leaves_nan_where_tokens_were_halted_or_never_were() -> None:
    full = stream_of(6, 4).keep(indices([0, 2, 5], [1, 3])).spread(0, 6)
    assert full.isnan().all(dim=-1).tolist() == [
        [False, True, False, True, True, False],
        [True, True, True, False, True, False],
    ]


def test_spread_after_keeping_everything_is_the_input() -> None:
    stream = stream_of(6, 6)
    assert stream.keep(indices(list(range(6)), list(range(6)))).spread(0, 6).equal(stream.hidden)
