"""Attention that tokens receive from others, in pieces of a few queries: never n * n."""

from collections.abc import Iterator

import torch

from deltahalt.errors import UnsupportedError
from deltahalt.policy import LayerView


def received_attention(view: LayerView, window: int) -> torch.Tensor:
    """Mean attention weight that each token receives from the last `window` queries, per head: [heads, n] float32.

    O(window * n). Raises UnsupportedError at a layer that does not see the whole prompt.
    """
    if not view.sees_all:
        raise UnsupportedError(
            f"layer {view.layer} attends over the last {view.window} tokens only, so it cannot score a prompt of "
            f"{view.prompt}: choose a start layer with full attention, or a policy without attention, such as key-norm"
        )
    keys, queries = view.keys(), view.queries(window)
    places = torch.arange(keys.shape[1], device=keys.device)
    weights = attention_weights(queries, places[-window:], keys, places, view.scaling)
    return torch.cat([group.mean(dim=1) for group in weights])


def attention_weights(
    queries: torch.Tensor,
    asking: torch.Tensor,
    keys: torch.Tensor,
    asked: torch.Tensor,
    scaling: float,
    window: int | None = None,
) -> Iterator[torch.Tensor]:
    """Causal attention of `queries` [heads, m, d] at positions `asking` [m] to `keys` [kv_heads, n, d] at `asked` [n].

    window: how far back a query attends, itself included. Yields the weights of one key head's queries at a time,
    [heads / kv_heads, m, n], softmax in float32.
    """
    distance = asking[:, None] - asked  # [m, n]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    for head, group in zip(keys, queries.chunk(len(keys)), strict=True):
        logits = group.float() @ head.float().T * scaling
        yield logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
