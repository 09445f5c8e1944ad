"""The ViT of Qwen3-VL: deepstack features are taken in mid-tower."""

from collections.abc import Mapping

from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from deltahalt.host.families.base import Module
from deltahalt.vision.towers.packed import PackedTower


class Qwen3VLTower(PackedTower):
    """Packed tower with mergers behind some of its blocks."""

    model_types = ("qwen3_vl",)
    rotate = staticmethod(apply_rotary_pos_emb_vision)

    def mergers(self, tower: Module) -> Mapping[int, Module]:
        behind = (block + 1 for block in tower.deepstack_visual_indexes)
        return dict(zip(behind, tower.deepstack_merger_list, strict=True))

    def stand_ins(self, tower: Module) -> dict[str, nn.Module]:
        return {"deepstack_merger_list": nn.ModuleList(nn.Identity() for _ in tower.deepstack_merger_list)}
