"""The ViT of Qwen2.5-VL: most blocks attend inside windows, and groups run window by window."""

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from deltahalt.vision.towers.packed import PackedTower


class Qwen25VLTower(PackedTower):
    """Plain packed tower: `feed` learns windows and order from the host."""

    model_types = ("qwen2_5_vl",)
    rotate = staticmethod(apply_rotary_pos_emb_vision)
