"""Causal attention of queries that are the last of the keys: the diagonal ends in the lower right corner."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right

from deltahalt.host import flash_four
from deltahalt.host.caught import CaughtAttention

MASKED_ROWS = 1024  # rows of a mask at once, where no kernel aligns to the lower right by itself


class LowerRight(CaughtAttention):
    """Makes `scaled_dot_product_attention` causal to the lower right in a `with` block, in this thread.

    The host's function for "sdpa" aligns its causal mask to the upper left, or needs a mask of queries and keys.

    starts: by row, the number of padding keys at its start, which nobody reads; empty for none.
    """

    def __init__(self, starts: Sequence[int] = ()) -> None:
        super().__init__()
        self.starts = starts

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
    ) -> torch.Tensor:
        if not self.starts:
            return attend_lower_right(query, key, value, scale, dropout)
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        for row, start in enumerate(self.starts):
            own = slice(row, row + 1)
            first = max(0, start - (key.shape[2] - query.shape[2]))  # queries before it are padding
            if first < query.shape[2]:
                read = key[own, :, start:], value[own, :, start:]
                output[own, :, first:] = attend_lower_right(query[own, :, first:], *read, scale, dropout)
        return output


def attend_lower_right(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """What queries [B, heads, q, d] read from keys and values [B, kv_heads, k, d]: [B, heads, q, d].

    The last q of the k keys are the queries' own, and each query reads keys up to its own.
    """
    queries, keys, shared = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout, "enable_gqa": shared}
    if queries > 1 and flash_four.takes(query, key, value, dropout):
        return flash_four.attend(query, key, value, scale)
    if queries in (1, keys):
        return F.scaled_dot_product_attention(query, key, value, is_causal=queries > 1, **options)
    planned = not dropout and keys % queries == 0
    if planned and torch._fused_sdp_choice(query, key, value, **options) == SDPBackend.CUDNN_ATTENTION.value:
        return _attend_in_blocks(query, key, value, scale)
    if can_use_flash_attention(SDPAParams(query, key, value, None, dropout, False, shared)):
        mask = causal_lower_right(queries, keys)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    return _attend_by_masks(query, key, value, scale, dropout)


def _attend_in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """As `attend_lower_right`, by cuDNN, which aligns causal masks to the upper left and compiles a plan for each size.

    The queries' own keys are attended to apart from the earlier ones, and those in blocks of few sizes. The outputs are
    weighted by the sums of their softmax, of which cuDNN gives the logarithms: [B, heads, q, 1].
    """
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    output, total = None, None
    for block, causal in _blocks(query.shape[2], key.shape[2]):
        part = attend(query, key[:, :, block], value[:, :, block], None, True, 0.0, causal, False, scale=scale)
        if output is None or total is None:
            output, total = part[0].float(), part[1]
        else:
            output = torch.lerp(output, part[0].float(), torch.sigmoid(part[1] - total))
            total = torch.logaddexp(total, part[1])
    assert output is not None
    return output.to(query.dtype)


def _blocks(queries: int, keys: int) -> Iterator[tuple[slice, bool]]:
    """Blocks of the keys, and whether they are the queries' own, which come last.

    A block of earlier keys has as many as the queries, times a power of two: a million tokens have few such sizes.
    """
    begin, blocks = 0, keys // queries - 1
    while blocks:
        size = 1 << (blocks.bit_length() - 1)
        yield slice(begin, begin + size * queries), False
        begin, blocks = begin + size * queries, blocks - size
    yield slice(begin, keys), True


def _attend_by_masks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
) -> torch.Tensor:
    """As `attend_lower_right`, with a small mask for a few queries at once.

    The heads that share a key head are rows of one query, so that no key is copied and any kernel takes them.
    """
    group, before = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    shared = query.unflatten(1, (-1, group))  # [B, kv_heads, group, q, d]
    output = shared.new_empty(*shared.shape[:-1], value.shape[-1])
    place = torch.arange(key.shape[2], device=query.device)
    few = max(1, MASKED_ROWS // group)
    for begin in range(0, query.shape[2], few):
        end = min(begin + few, query.shape[2])
        read = before + end
        visible = place[:read] <= place[before + begin : read, None]
        output[..., begin:end, :] = F.scaled_dot_product_attention(
            shared[..., begin:end, :].flatten(2, 3),  # [B, kv_heads, group * few, d]
            key[:, :, :read],
            value[:, :, :read],
            attn_mask=visible.repeat(group, 1),
            scale=scale,
            dropout_p=dropout,
        ).unflatten(2, (group, -1))
    return output.flatten(1, 2)
