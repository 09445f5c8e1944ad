"""Dense Qwen3, which normalizes queries and keys per head before RoPE."""

import torch
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from deltahalt.host.families.base import Family, Module, Rotary


class Qwen3(Family):
    """A pre-norm decoder with norms on queries and keys."""

    model_types = ("qwen3",)
    rotate = staticmethod(apply_rotary_pos_emb)

    def rms_norms(self, layer: Module) -> list[Module]:
        return [*super().rms_norms(layer), layer.self_attn.q_norm, layer.self_attn.k_norm]

    def queries(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        attention = layer.self_attn
        heads = self._heads(layer, attention.q_proj(layer.input_layernorm(hidden)))
        return self._rotated(attention.q_norm(heads), rotary)

    def _keys(self, layer: Module, normed: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        attention = layer.self_attn
        return self._rotated(attention.k_norm(self._heads(layer, attention.k_proj(normed))), rotary)
