"""The ViT of LLaVA, a CLIP with a class token or a SigLIP; every patch becomes one visual token."""

from typing import Any

from torch import nn

from deltahalt.host.families.base import Module
from deltahalt.vision.towers.batched import BatchedTower


class LlavaTower(BatchedTower):
    """The features are hidden states of a middle layer. The host decides whether to drop the class token from them."""

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
        return nn.Identity() if self.lead else super().merger(tower)  # CLIP's final norm is for the class token only
