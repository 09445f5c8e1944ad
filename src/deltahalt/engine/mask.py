"""The attention mask of one run of layers, measured in the columns of the original input."""

from collections.abc import Callable

import torch

from deltahalt.host.compat import blocks_cross_windows

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def attention_mask(
    queries: torch.Tensor,
    keys: torch.Tensor,
    *,
    padded: bool,
    window: int | None,
    attention: str,
    dtype: torch.dtype,
    block_of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor | None:
    """What the host's attention function `attention` takes as its mask, in the host's own conventions.

    queries [B, q], keys [B, k]: slots of the tokens that read and are read; -1 for padding. The last q keys are the
    queries themselves. padded: whether any key is padding. window: how many columns back a query sees, itself
    included; None where it sees all, or where all tokens seen so far fit. block_of: slots -> [B, n] blocks within which
    tokens see later ones too, -1 for none; FlashAttention has no such thing, in the host neither.

    Returns None (plain causal, or one query that sees all), a 2D mask [B, k] for FlashAttention, or [B, 1, q, k]:
    boolean for sdpa, additive in `dtype` for eager.
    """
    if attention.startswith("flash"):
        return keys >= 0 if padded else None
    plain = window is None and not padded and block_of is None
    if attention == "sdpa" and plain and queries.shape[1] in (1, keys.shape[1]):
        return None
    reader, read = queries[:, None, :, None], keys[:, None, None, :]
    visible = read <= reader
    if block_of is not None:
        inner, outer = block_of(queries)[:, None, :, None], block_of(keys)[:, None, None, :]
        together = (inner == outer) & (inner >= 0)
        visible |= together
    if window is not None:
        near = read > reader - window
        visible &= near | together if block_of is not None and blocks_cross_windows() else near
    visible &= read >= 0
    if attention == "eager":
        return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)
    return visible
