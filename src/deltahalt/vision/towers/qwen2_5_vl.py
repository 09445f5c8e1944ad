"""The ViT of Qwen2.5-VL. Most blocks attend inside windows, and groups are ordered by window."""

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from deltahalt.vision.towers.packed import PackedTower


class Qwen25VLTower(PackedTower):
    """A packed tower without changes: `feed` takes windows and order from the host."""

    model_types = ("qwen2_5_vl",)
    rotate = staticmethod(apply_rotary_pos_emb_vision)
