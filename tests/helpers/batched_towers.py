"""Tiny models whose ViTs run batches, their images, and what their hosts make of them, halted or not."""

from typing import Any

import torch

from deltahalt.vision import VisionPolicy, halting_vision
from helpers.batched_oracle import SIDES
from helpers.tiny_vision import features_of, tiny_vision

TOWERS = list(SIDES)
DEPTH, IMAGES, TOKENS = 6, 3, 16
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
CLOSE: dict[str, Any] = {"atol": 5e-5, "rtol": 1e-4}


def model_of(name: str, attention: str = "sdpa", **whole: Any) -> Any:
    """A tiny model, a name of TOWERS. whole: for its configuration."""
    if name == "llava-siglip":
        whole = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"} | whole
        return tiny_vision("llava", attention, tower=SIGLIP, whole=whole)
    return tiny_vision(name, attention, whole=whole)


def images_of(name: str, count: int = IMAGES) -> torch.Tensor:
    """Random images, [count, 3, height, width]."""
    side = 32 if SIDES[name] == 2 else 16
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def home(model: Any) -> Any:
    """The host's module whose forward is replaced."""
    return model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.vision_model


def encode(name: str, model: Any, images: torch.Tensor | None = None) -> Any:
    """What the host makes of a batch of images."""
    images = images_of(name) if images is None else images
    with torch.no_grad():
        return model.model.get_image_features(images[None] if "vision_model" in dir(model.model) else images)


def halted(name: str, model: Any, policy: VisionPolicy, *images: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Features [images, TOKENS, D] and the report."""
    with halting_vision(model, policy) as seam:
        output = encode(name, model, *images)
    return torch.cat([part.flatten(0, -2) for part in features_of(output)]).unflatten(0, (-1, TOKENS)), seam.report


def stock(name: str, model: Any) -> torch.Tensor:
    return torch.cat([part.flatten(0, -2) for part in features_of(encode(name, model))]).unflatten(0, (-1, TOKENS))


def left_of(features: torch.Tensor) -> list[list[int]]:
    """Places of the features that are there, by image."""
    gone = features.isnan()
    assert torch.equal(gone.any(dim=-1), gone.all(dim=-1))
    return [(~rows).nonzero().squeeze(1).tolist() for rows in gone[..., 0]]
