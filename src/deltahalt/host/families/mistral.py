"""Mistral, with one attention window for all layers, or none."""

from typing import Any

from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

from deltahalt.host.families.base import Family


class Mistral(Family):
    """A plain pre-norm decoder with one attention window."""

    model_types = ("mistral",)
    rotate = staticmethod(apply_rotary_pos_emb)

    def windows(self, config: Any) -> tuple[int | None, ...]:
        return (config.sliding_window,) * int(config.num_hidden_layers)
