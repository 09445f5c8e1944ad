"""Qwen2-VL."""

from typing import Any

import torch

from deltahalt.host.compat import merged_mrope, mrope_of_layer
from deltahalt.host.families.base import Module, Rotary
from deltahalt.host.families.mrope import MRope
from deltahalt.host.families.qwen2 import Qwen2
from deltahalt.host.families.vision import VisionFamily


class Qwen2VLText(MRope, Qwen2):
    """The decoder of Qwen2-VL: Qwen2 with M-RoPE."""

    model_types = ("qwen2_vl_text",)

    def rotary(self, decoder: Module, hidden: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Rotary]:
        planes = super().rotary(decoder, hidden, position_ids)
        return {kind: merged_mrope(rotary, decoder.config) for kind, rotary in planes.items()}

    def for_layer(self, rotary: Rotary) -> Any:
        return mrope_of_layer(rotary)


class Qwen2VL(VisionFamily):
    """Qwen2-VL, for images and videos."""

    model_types = ("qwen2_vl",)
