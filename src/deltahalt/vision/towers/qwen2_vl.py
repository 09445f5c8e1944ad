"""The ViT of Qwen2-VL. Each frame attends only to itself."""

from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from deltahalt.vision.towers.packed import PackedTower


class Qwen2VLTower(PackedTower):
    """A packed tower without changes."""

    model_types = ("qwen2_vl",)
    rotate = staticmethod(apply_rotary_pos_emb_vision)
