"""Qwen2, Qwen2.5 and Qwen2.5-1M."""

from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from deltahalt.host.families.base import Family


class Qwen2(Family):
    """A plain pre-norm decoder; some configurations have sliding-window layers."""

    model_types = ("qwen2",)
    rotate = staticmethod(apply_rotary_pos_emb)
