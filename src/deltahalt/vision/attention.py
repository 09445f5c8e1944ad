"""Attention weights on groups of patches, computed without an all-pairs tensor of patches."""

import torch
import torch.nn.functional as F

from deltahalt.vision.policy import GroupView

QUERIES = 128  # queries whose weights are held at once


def attention_on_groups(view: GroupView) -> torch.Tensor:
    """Return the attention on each group, [n] float32: from the class token, or without one from all patches."""
    return class_attention(view) if view.class_queries.shape[1] else vit_received_attention(view)


def class_attention(view: GroupView) -> torch.Tensor:
    """Return the class token's attention weight on each group, [n] float32: patch sum, mean over heads."""
    keys = torch.cat([view.class_keys, view.keys()], dim=1).float()
    weights = (view.class_queries.float() @ keys.transpose(1, 2) * view.scaling).softmax(dim=-1)
    on_patches = weights[:, 0, view.class_keys.shape[1] :].mean(dim=0)
    return on_patches.unflatten(0, (len(view.places), -1)).sum(dim=1)


def vit_received_attention(view: GroupView) -> torch.Tensor:
    """Return the attention weight that each group receives from all patches, [n] float32.

    Weights are summed over queries and over the group's patches and averaged over heads, so that they add up to the
    number of patches. The softmax runs in float32 in each segment; the largest tensor is [heads, QUERIES, patches of a
    segment].
    """
    queries, keys, received = view.queries(), view.keys(), []
    rows = [groups * (queries.shape[1] // len(view.places)) for groups in view.segments]
    for own_queries, own_keys in zip(queries.split(rows, dim=1), keys.split(rows, dim=1), strict=True):
        weights = torch.zeros(own_keys.shape[:2], device=own_keys.device)  # [heads, patches]
        for chunk in own_queries.split(QUERIES, dim=1):
            logits = chunk.float() @ own_keys.float().transpose(1, 2) * view.scaling
            weights += logits.softmax(dim=-1).sum(dim=1)
        received.append(weights.mean(dim=0))
    return torch.cat(received).unflatten(0, (len(view.places), -1)).sum(dim=1)


def sized_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sizes: torch.Tensor,
    rows: list[int],
    scaling: float,
) -> torch.Tensor:
    """Return proportional attention, in which log(size) of each key is added to its logits (ToMe, Eq. 1).

    queries, keys, values: [S, heads, d], patches of all segments. sizes: [S]. rows: number of patches in each segment.
    The output is [S, heads * d].
    """
    outputs = []
    for q, k, v, size in zip(*(part.split(rows) for part in (queries, keys, values, sizes)), strict=True):
        query, key, value = (part.transpose(0, 1)[None] for part in (q, k, v))
        bias = size.log().to(q.dtype)[None, None, None]  # the same for every query
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs).flatten(1)
