"""The ViT of Gemma 3, a SigLIP whose output is averaged over squares of patches."""

import math

from deltahalt.vision.towers.batched import BatchedTower


class Gemma3Tower(BatchedTower):
    """A group is a square that the host's projector averages, so its feature is NaN if its patches are."""

    model_types = ("gemma3",)

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size // math.isqrt(self.config.mm_tokens_per_image))

    def unsupported(self) -> str | None:
        kind = self.config.vision_config.model_type
        return None if kind == "siglip_vision_model" else f"its ViT is a {kind!r}, not SigLIP"
