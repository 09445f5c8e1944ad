"""The ViT of Qwen3-VL, which takes deepstack features in the middle of the tower."""

from collections.abc import Mapping

from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from deltahalt.host.families.base import Module
from deltahalt.vision.towers.packed import PackedTower


class Qwen3VLTower(PackedTower):
    """A packed tower with mergers after some of its blocks."""

    model_types = ("qwen3_vl",)
    rotate = staticmethod(apply_rotary_pos_emb_vision)

    def mergers(self, tower: Module) -> Mapping[int, Module]:
        before = (block + 1 for block in tower.deepstack_visual_indexes)  # number of blocks before each merger
        return dict(zip(before, tower.deepstack_merger_list, strict=True))

    def stand_ins(self, tower: Module) -> dict[str, nn.Module]:
        return {"deepstack_merger_list": nn.ModuleList(nn.Identity() for _ in tower.deepstack_merger_list)}
