"""Attention that patches receive and pay, never with a tensor of all patches against all."""

import torch
import torch.nn.functional as F

from deltahalt.vision.policy import GroupView

QUERIES = 128  # at once


def attention_on_groups(view: GroupView) -> torch.Tensor:
    """What counts as attention on each group, [n] float32: the class token's; without one, that of all patches."""
    return class_attention(view) if view.class_queries.shape[1] else received_attention(view)


def class_attention(view: GroupView) -> torch.Tensor:
    """Attention weight of the class token on each group: summed over its patches, mean over heads, [n] float32."""
    keys = torch.cat([view.class_keys, view.keys()], dim=1).float()
    weights = (view.class_queries.float() @ keys.transpose(1, 2) * view.scaling).softmax(dim=-1)
    on_patches = weights[:, 0, view.class_keys.shape[1] :].mean(dim=0)
    return on_patches.unflatten(0, (len(view.places), -1)).sum(dim=1)


def received_attention(view: GroupView) -> torch.Tensor:
    """Attention weight that each group receives: summed over queries and its patches, mean over heads, [n] float32.

    The sum over all groups is the number of patches. Softmax in float32 inside each segment, over chunks of queries:
    the largest tensor is [heads, QUERIES, patches of a segment].
    """
    queries, keys, received = view.queries(), view.keys(), []
    rows = [groups * (queries.shape[1] // len(view.places)) for groups in view.segments]
    for asking, asked in zip(queries.split(rows, dim=1), keys.split(rows, dim=1), strict=True):
        weights = torch.zeros(asked.shape[:2], device=asked.device)  # [heads, patches]
        for chunk in asking.split(QUERIES, dim=1):
            logits = chunk.float() @ asked.float().transpose(1, 2) * view.scaling
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
    """Attention in which a key counts as often as its size says, by log(size) on its logits (ToMe, Eq. 1).

    queries, keys, values: [S, heads, d], patches of all segments; sizes: [S]; rows: patches in each segment.
    Returns [S, heads * d].
    """
    outputs = []
    for q, k, v, size in zip(*(part.split(rows) for part in (queries, keys, values, sizes)), strict=True):
        asking, asked, told = (part.transpose(0, 1)[None] for part in (q, k, v))
        bias = size.log().to(q.dtype)[None, None, None]  # the same for every query
        mixed = F.scaled_dot_product_attention(asking, asked, told, attn_mask=bias, scale=scaling)
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs).flatten(1)
