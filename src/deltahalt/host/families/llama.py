"""Llama 2 and 3, SmolLM2 and other models in the Llama format."""

from typing import Any

from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from deltahalt.host.families.base import Family


class Llama(Family):
    """A plain pre-norm decoder without attention windows."""

    model_types = ("llama",)
    rotate = staticmethod(apply_rotary_pos_emb)

    def windows(self, config: Any) -> tuple[int | None, ...]:
        return (None,) * int(config.num_hidden_layers)
