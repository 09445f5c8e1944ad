"""Where the transformers versions that deltahalt runs on differ."""

from functools import cache
from importlib import import_module
from typing import Any

import torch
import transformers


@cache
def _host_has(model_type: str, name: str) -> bool:
    """Whether the host's code for a model has `name`; loaded when asked, since it takes a second."""
    return hasattr(import_module(f"transformers.models.{model_type}.modeling_{model_type}"), name)


def blocks_cross_windows() -> bool:
    """Whether an image's tokens see each other beyond a sliding window, too, as in older versions of Gemma 3."""
    return not _host_has("gemma3", "create_masks_for_vision_model")


def unpacked_gguf() -> dict[str, Any]:
    """What makes `from_pretrained` turn the weights of a GGUF file into plain tensors."""
    # Newer versions otherwise use packed layers, and another attention, wherever they find kernels for them.
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


def layer_output(output: Any) -> torch.Tensor:
    """Hidden states that a decoder layer of the host returned."""
    # Older vision-language models return them in a tuple.
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def bare_tower(tower: Any) -> Any:
    """The module that runs the blocks of a CLIP or SigLIP tower."""
    # Older versions wrap it in a module that only passes things on.
    return getattr(tower, "vision_model", tower)


def merged_mrope(rotary: tuple[torch.Tensor, ...], config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of M-RoPE with the sections of the three planes side by side, [B, n, d]."""
    cos, sin = rotary
    if cos.ndim == 3:
        return cos, sin
    # Older versions leave [3, B, n, d] for each layer to merge.
    sections = 2 * config.rope_parameters["mrope_section"]
    merged = [
        torch.cat([part[plane % 3] for plane, part in enumerate(table.split(sections, dim=-1))], dim=-1)
        for table in (cos, sin)
    ]
    return merged[0], merged[1]


def mrope_of_layer(rotary: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `merged_mrope` made, in the form that a layer of the host takes."""
    if _host_has("qwen2_vl", "apply_multimodal_rotary_pos_emb"):
        return rotary[0].expand(3, *rotary[0].shape), rotary[1].expand(3, *rotary[1].shape)
    return rotary
