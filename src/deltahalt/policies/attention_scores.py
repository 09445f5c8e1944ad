"""Attention that the last tokens pay to all others, from their queries alone: O(window * n), never n * n."""

import torch

from deltahalt.errors import UnsupportedError
from deltahalt.policy import LayerView


def received_attention(view: LayerView, window: int) -> torch.Tensor:
    """Mean attention weight that each token receives from the last `window` queries, per head: [heads, n] float32.

    Softmax in float32, causal inside the window; one key head at a time, so the largest tensor is
    [heads / kv_heads, window, n]. Raises UnsupportedError at a layer that does not see the whole prompt.
    """
    if not view.sees_all:
        raise UnsupportedError(
            f"layer {view.layer} attends over the last {view.window} tokens only, so it cannot score a prompt of "
            f"{view.prompt}: choose a start layer with full attention, or a policy without attention, such as key-norm"
        )
    keys, queries = view.keys(), view.queries(window)
    kv_heads, n, _ = keys.shape
    row = torch.arange(n - window, n, device=keys.device)
    future = torch.arange(n, device=keys.device) > row[:, None]  # [window, n]
    received = []
    for head, group in zip(keys, queries.chunk(kv_heads), strict=True):
        logits = group.float() @ head.float().T * view.scaling  # [heads / kv_heads, window, n]
        received.append(logits.masked_fill(future, -torch.inf).softmax(dim=-1).mean(dim=1))
    return torch.cat(received)
