"""Tiny vision-language models with random weights, and packs of images for their ViTs."""

from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tiny import _draw_weights

DEPTH, UNIT, PATCH, WIDTH = 6, 4, 4, 32  # blocks, patches in a group, pixels along a patch, width of the language model
TEXT = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {
    "depth": DEPTH,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
TOWERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2_vl": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig,
        {"embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": WIDTH,
            "window_size": 4 * PATCH,  # 2x2 groups
            "fullatt_block_indexes": [2, 5],
        },
    ),
    "qwen3_vl": (
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 2, 4],
        },
    ),
}
GRID = torch.tensor([[1, 6, 8], [1, 4, 4], [2, 8, 6], [1, 2, 2]])  # three images and a video of two frames
GROUPS = (12, 4, 24, 1)


def tiny_vlm(name: str = "qwen2_vl", attention: str = "sdpa", *, seed: int = 0, **options: Any) -> Any:
    """A tiny vision-language model, a name of TOWERS; the same weights for the same seed. options: for its ViT."""
    model_class, config_class, vision = TOWERS[name]
    config = config_class(
        text_config=TEXT, vision_config={**VISION, **vision, **options}, attn_implementation=attention
    )
    model = model_class(config)
    _draw_weights(model, seed)
    return model.eval()


def pixels(grid: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Patches of random images of this grid, [S, 3 * 2 * PATCH * PATCH]."""
    patches = int(grid.prod(dim=1).sum())
    return torch.randn(patches, 3 * 2 * PATCH**2, generator=torch.Generator().manual_seed(seed))
