"""The ViT of LLaVA: CLIP with a class token, or SigLIP; every patch is a visual token."""

from typing import Any

from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.vision.towers.batched import BatchedTower


class LlavaTower(BatchedTower):
    """Features are hidden states in mid-tower. Whether the class token is among them is the host's business."""

    model_types = ("llava",)
    side = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.kind = config.vision_config.model_type
        self.lead = int(self.kind == "clip_vision_model")

    def unsupported(self) -> str | None:
        if self.kind in ("clip_vision_model", "siglip_vision_model"):
            return None
        return f"its ViT is a {self.kind!r}, not CLIP or SigLIP"

    def merger(self, tower: Module) -> Module:
        return nn.Identity() if self.lead else super().merger(tower)  # CLIP's norm is for its class token alone
