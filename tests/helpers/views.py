"""Views of one layer over small random tensors: policies are tested without a model."""

from typing import Any

import torch

from deltahalt.policies.layer_view import LayerView

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 16


def layer_view(
    prompt: int,
    *,
    positions: torch.Tensor | None = None,
    queries: torch.Tensor | None = None,  # [HEADS, n, HEAD_DIM]
    keys: torch.Tensor | None = None,  # [KV_HEADS, n, HEAD_DIM]
    seed: int = 0,
    **fields: Any,
) -> LayerView:
    """A prompt of `prompt` tokens at one layer; random where nothing is given. fields: of LayerView."""
    generator = torch.Generator("cpu").manual_seed(seed)
    positions = torch.arange(prompt) if positions is None else positions
    n = len(positions)
    # Queries are scaled up so that attention is far from even.
    asked = 4 * torch.randn(HEADS, n, HEAD_DIM, generator=generator) if queries is None else queries
    offered = torch.randn(KV_HEADS, n, HEAD_DIM, generator=generator) if keys is None else keys
    given = {
        "layer": 3,
        "hidden_in": torch.randn(n, HIDDEN, generator=generator),
        "update": torch.randn(n, HIDDEN, generator=generator),
        "hidden_out": torch.randn(n, HIDDEN, generator=generator),
        "scaling": HEAD_DIM**-0.5,
    }
    return LayerView(
        prompt=prompt,
        positions=positions,
        queries=lambda last: asked[:, -last:],
        keys=lambda: offered,
        **given | fields,
    )


def attention_matrix(view: LayerView) -> torch.Tensor:
    """All n queries against all n keys, [heads, n, n]: key heads repeated, causal, softmax."""
    n = len(view.positions)
    keys = view.keys().repeat_interleave(HEADS // KV_HEADS, dim=0)
    logits = view.queries(n) @ keys.transpose(1, 2) * view.scaling
    future = torch.ones(n, n).triu(diagonal=1).bool()
    return logits.masked_fill(future, -torch.inf).softmax(dim=-1)
