"""Gemma 3, text: norms around both halves of a layer, and a RoPE for each kind of layer."""

from typing import Any

import torch
from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

from deltahalt.families.base import Module, Rotary
from deltahalt.families.qwen3 import Qwen3


class Gemma3Text(Qwen3):
    """Norms after attention and FFN too."""

    model_types = ("gemma3_text",)
    rotate = staticmethod(apply_rotary_pos_emb)

    def unsupported(self, config: Any) -> str | None:
        if config.use_bidirectional_attention:
            return "this Gemma 3 attends in both directions, as an encoder: halting is for causal decoders"
        return None

    def rotary(self, decoder: Module, hidden: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Rotary]:
        kinds = set(decoder.config.layer_types)
        return {kind: decoder.rotary_emb(hidden, position_ids, kind) for kind in kinds}

    def rotary_kind(self, config: Any, layer: int) -> str:
        return str(config.layer_types[layer])

    def add_attention(self, layer: Module, hidden: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = hidden + layer.post_attention_layernorm(update)
        return out

    def feed_forward(self, layer: Module, hidden: torch.Tensor) -> torch.Tensor:
        inner = layer.mlp(layer.pre_feedforward_layernorm(hidden))
        out: torch.Tensor = hidden + layer.post_feedforward_layernorm(inner)
        return out
