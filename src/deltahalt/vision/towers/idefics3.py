"""The ViT of Idefics3 and SmolVLM, a SigLIP on tiles of an image, whose output is pixel-shuffled in squares."""

from deltahalt.vision.towers.batched import BatchedTower


class Idefics3Tower(BatchedTower):
    """A group is a square that the host's connector joins into one row. A tile counts as an image."""

    model_types = ("idefics3", "smolvlm")
    home = "vision_model"

    @property
    def side(self) -> int:
        return int(self.config.scale_factor)
