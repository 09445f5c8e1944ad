"""Attention that tokens receive from others, in pieces of a few queries: never n * n."""

from collections.abc import Iterator

import torch

from deltahalt.errors import UnsupportedError
from deltahalt.policies.base import LayerView

READERS = 64  # whose attention is held at once
HELD = 2**26  # weights that are held at once, where a key head has no more


def received_attention(view: LayerView, window: int) -> torch.Tensor:
    """Mean attention weight that each token receives from the last `window` queries, per head: [heads, n] float32."""
    n = len(view.positions)
    return attention_from(view, torch.arange(n - window, n))  # on the CPU, so that no GPU is waited for


def attention_from(view: LayerView, readers: torch.Tensor) -> torch.Tensor:
    """Mean attention weight that each token receives from the tokens at `readers` [r], ascending: [heads, n] float32.

    O(r * n), `READERS` at a time. Raises UnsupportedError at a layer that does not see the whole prompt.
    """
    if not view.sees_all:
        raise UnsupportedError(
            f"layer {view.layer} attends over the last {view.window} tokens only, so it cannot score a prompt of "
            f"{view.prompt}: choose a start layer with full attention, or a policy without attention, such as key-norm"
        )
    n, first = len(view.positions), int(readers[0])
    keys, queries = view.keys(), view.queries(n - first)
    readers = readers.to(keys.device, non_blocking=True)  # or a GPU would be waited for
    places = torch.arange(n, device=keys.device)
    received = torch.zeros(len(queries), n, device=keys.device)
    for some in readers.split(READERS):
        weights = attention_weights(queries[:, some - first], some, keys, places, view.scaling)
        received += torch.cat([group.sum(dim=1) for group in weights])
    return received / len(readers)


def attention_weights(
    queries: torch.Tensor,
    asking: torch.Tensor,
    keys: torch.Tensor,
    asked: torch.Tensor,
    scaling: float,
    window: int | None = None,
) -> Iterator[torch.Tensor]:
    """Causal attention of `queries` [heads, m, d] at positions `asking` [m] to `keys` [kv_heads, n, d] at `asked` [n].

    window: how far back a query attends, itself included. Yields the weights of some heads at a time, [some, m, n],
    those of one key head together; softmax in float32.
    """
    distance = asking[:, None] - asked  # [m, n]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    grouped = queries.unflatten(0, (len(keys), -1))  # [kv_heads, group, m, d]
    at_once = max(1, HELD // (grouped.shape[1] * distance.numel()))
    for some_keys, asked_of in zip(keys.split(at_once), grouped.split(at_once), strict=True):
        logits = asked_of.flatten(1, 2).float() @ some_keys.float().mT * scaling  # [some kv_heads, group * m, n]
        logits = logits.unflatten(1, asked_of.shape[1:3]).flatten(0, 1)
        yield logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
