"""The attention weight that tokens receive from chosen queries, computed for a few queries at a time: never [n, n]."""

from collections.abc import Iterator

import torch

from deltahalt.errors import UnsupportedError
from deltahalt.policies.layer_view import LayerView

READERS = 64  # queries whose weights are in memory at once
HELD = 2**26  # weights in memory at once, or those of one key head if these are more


def received_attention(view: LayerView, window: int) -> torch.Tensor:
    """Mean attention weight that each token receives from the last `window` queries, per head: [heads, n] float32."""
    n = len(view.positions)
    return attention_from(view, torch.arange(n - window, n))  # indices on the CPU: no wait for a GPU


def attention_from(view: LayerView, readers: torch.Tensor) -> torch.Tensor:
    """Mean attention weight that each token receives from the queries of tokens `readers` [r]: [heads, n] float32.

    readers: ascending indices of active tokens. Costs O(r * n). Raises UnsupportedError in a layer that does not see
    the whole prompt.
    """
    if not view.sees_all:
        raise UnsupportedError(
            f"layer {view.layer} attends over the last {view.window} tokens only, so it cannot score a prompt of "
            f"{view.prompt}: choose a start layer with full attention, or a policy that needs none, such as key-norm"
        )
    n, first = len(view.positions), int(readers[0])
    keys, queries = view.keys(), view.queries(n - first)
    readers = readers.to(keys.device, non_blocking=True)  # no wait for a GPU
    places = torch.arange(n, device=keys.device)
    received = torch.zeros(len(queries), n, device=keys.device)
    for some in readers.split(READERS):
        weights = attention_weights(queries[:, some - first], some, keys, places, view.scaling)
        received += torch.cat([group.sum(dim=1) for group in weights])
    return received / len(readers)


def attention_weights(
    queries: torch.Tensor,
    query_positions: torch.Tensor,
    keys: torch.Tensor,
    key_positions: torch.Tensor,
    scaling: float,
    window: int | None = None,
) -> Iterator[torch.Tensor]:
    """Causal attention weights of `queries` [heads, m, d] on `keys` [kv_heads, n, d], with the softmax in float32.

    query_positions: [m]; key_positions: [n]. window: number of positions that a query attends to, its own included.
    Yields the weights of some heads at a time, [some, m, n]; the heads of one key head come together.
    """
    distance = query_positions[:, None] - key_positions  # [m, n]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    grouped = queries.unflatten(0, (len(keys), -1))  # [kv_heads, group, m, d]
    at_once = max(1, HELD // (grouped.shape[1] * distance.numel()))
    for some_keys, their_queries in zip(keys.split(at_once), grouped.split(at_once), strict=True):
        logits = their_queries.flatten(1, 2).float() @ some_keys.float().mT * scaling  # [some kv_heads, group * m, n]
        logits = logits.unflatten(1, their_queries.shape[1:3]).flatten(0, 1)
        yield logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
