"""Views of one block of a ViT over small random tensors: ViT-stage methods are tested without a model."""

from typing import Any

import torch

from deltahalt.vision.policy import GroupView

UNIT, HEADS, HEAD_DIM, WIDTH = 4, 2, 8, 16


def group_view(n: int, *, total: int | None = None, seed: int = 0, **fields: Any) -> GroupView:
    """n groups in raster order; random where nothing is given. queries, keys, raw_keys: [HEADS, n * UNIT, HEAD_DIM]."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heads = {name: draw(HEADS, n * UNIT, HEAD_DIM) * 2 for name in ("queries", "keys", "raw_keys")}
    heads |= {name: fields.pop(name) for name in list(fields) if name in heads}
    given = {
        "block": 2,
        "places": torch.arange(n) + 7,  # behind another image
        "hidden_in": draw(n, UNIT, WIDTH),
        "update": draw(n, UNIT, WIDTH),
        "class_queries": torch.empty(HEADS, 0, HEAD_DIM),
        "class_keys": torch.empty(HEADS, 0, HEAD_DIM),
        "scaling": HEAD_DIM**-0.5,
        "segments": (n,),
        "sizes": torch.ones(n),
        "normed": lambda states: states,
    }
    return GroupView(
        total=n if total is None else total,
        queries=lambda: heads["queries"],
        keys=lambda: heads["keys"],
        raw_keys=lambda: heads["raw_keys"],
        **given | fields,
    )


def states_of(n: int, *shape: int, seed: int = 1) -> torch.Tensor:
    """Random states of n groups, [n, UNIT, WIDTH] or of another shape."""
    return torch.randn(n, *(shape or (UNIT, WIDTH)), generator=torch.Generator().manual_seed(seed))
