"""FlashAttention, whose kernels no CPU has: its conventions, written out."""

from typing import Any

import torch


def flash_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[B, heads, q, d] and [B, kv_heads, k, d] -> [B, q, heads, d].

    attention_mask is None or [B, k], and tells keys from padding, which is taken out. What remains is causal, with
    the last query at the last key, and the window counts keys.
    """
    assert attention_mask is None or attention_mask.shape == (len(key), key.shape[2])
    gaps = position_ids is not None and bool((position_ids.diff() != 1).any())
    assert attention_mask is not None or not gaps, "the host would take this for several prompts in a row"
    out = torch.zeros_like(query)
    for row in range(len(query)):
        real = torch.ones(key.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
        asking = real[-query.shape[2] :]
        q, k, v = query[row][:, asking], key[row][:, real], value[row][:, real]
        groups = len(q) // len(k)
        place = torch.arange(k.shape[1])
        last = place[-q.shape[1] :, None]
        hidden = place > last
        if sliding_window is not None:
            hidden |= place <= last - sliding_window
        logits = q @ k.repeat_interleave(groups, dim=0).mT * scaling
        weights = logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        out[row][:, asking] = weights @ v.repeat_interleave(groups, dim=0)
    return out.transpose(1, 2), None
