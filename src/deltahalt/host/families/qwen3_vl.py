"""Dense Qwen3-VL, which adds features of several depths of the ViT after its first layers (deepstack)."""

from typing import Any

import torch

from deltahalt.host.families.mrope import MRope
from deltahalt.host.families.qwen3 import Qwen3
from deltahalt.host.families.vision import VisionFamily


class Qwen3VLText(MRope, Qwen3):
    """The decoder of Qwen3-VL: Qwen3 with M-RoPE and deepstack."""

    model_types = ("qwen3_vl_text",)
    own = ("visual_pos_masks", "deepstack_visual_embeds")

    def windows(self, config: Any) -> tuple[int | None, ...]:
        return (None,) * int(config.num_hidden_layers)

    def after_layer(self, index: int, hidden: torch.Tensor, columns: torch.Tensor, **own: Any) -> torch.Tensor:
        depths = own.get("deepstack_visual_embeds") or ()
        if index >= len(depths):
            return hidden
        features, places = depths[index].to(hidden.device, hidden.dtype), own["visual_pos_masks"].to(columns.device)
        number = (places.flatten().cumsum(dim=0) - 1).view_as(places)  # [B, T] index of each column's feature
        number = number.masked_fill(~places, -1).gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)
        number = number.to(hidden.device)  # [B, n]
        hidden = hidden.clone()
        hidden[number >= 0] += features[number[number >= 0]]
        return hidden


class Qwen3VL(VisionFamily):
    """Qwen3-VL, for images and videos. Timestamps separate the frames of a video."""

    model_types = ("qwen3_vl",)
