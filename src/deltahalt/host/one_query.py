"""Attention of one query token to keys that lie in a longer tensor, read by the whole GPU even for one prompt."""

import torch

from deltahalt.host.caught import CaughtAttention

PART = 256  # keys in a part; every part of every key head is a matrix product of its own


class OneQuery(CaughtAttention):
    """Makes `scaled_dot_product_attention` read the visible keys only, in a `with` block, in this thread.

    visible: [B or 1, k] whether a key is read.
    """

    def __init__(self, visible: torch.Tensor) -> None:
        super().__init__()
        self.bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
    ) -> torch.Tensor:
        return attend_once(query, key, value, self.bias, query.shape[-1] ** -0.5 if scale is None else scale)


def attend_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """What the heads of one token read: [B, heads, q, d].

    query: [B, heads, q, d], where heads * q is the number of the token's heads. key, value: [B, kv_heads, k, d], k a
    multiple of PART. bias: [B or 1, k] float32, added to the scores. Heads that share a key head are rows of one
    matrix, so that K and V are read once. Sums are in float32.
    """
    rows, shared = key.shape[:2]
    heads = query.reshape(rows * shared, -1, query.shape[-1])  # [B * kv_heads, group, d]
    scores = _product(heads, key.flatten(0, 1).mT).unflatten(0, (rows, shared))
    weights = torch.add(bias[:, None, None], scores, alpha=scale).softmax(dim=-1).to(value.dtype)
    parts = weights.unflatten(-1, (-1, PART)).transpose(2, 3).flatten(0, 2)  # [B * kv_heads * parts, group, PART]
    read = _product(parts, value.reshape(-1, PART, value.shape[-1]))
    return read.unflatten(0, (rows * shared, -1)).sum(dim=1).to(query.dtype).view_as(query)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Batched matrix product in float32, without a float32 copy of either factor on a GPU."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
