"""Phi-3 and Phi-4-mini, with fused q, k and v, partial RoPE, and one attention window for all layers or none."""

import torch
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from deltahalt.host.families.base import Module, Rotary
from deltahalt.host.families.mistral import Mistral


class Phi3(Mistral):
    """A Mistral-like decoder with one fused projection for q, k and v."""

    model_types = ("phi3",)
    rotate = staticmethod(apply_rotary_pos_emb)

    def queries(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        return self._rotated(self._split(layer, hidden)[0], rotary)

    def keys(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        return self._rotated(self._split(layer, hidden)[1], rotary)

    def keys_values(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        _, keys, values = self._split(layer, hidden)
        return self._rotated(keys, rotary), values

    def _split(self, layer: Module, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads = self._heads(layer, layer.self_attn.qkv_proj(layer.input_layernorm(hidden)))
        shared = layer.self_attn.num_key_value_heads
        return heads.tensor_split((heads.shape[1] - 2 * shared, heads.shape[1] - shared), dim=1)
