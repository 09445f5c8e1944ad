"""A model of a given shape with random weights, and the least memory that it needs."""

import os
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from deltahalt.errors import InputError
from deltahalt.flops import ModelShape

VOCABULARY = 32_000


def random_config(shape: ModelShape, *, longest: int) -> LlamaConfig:
    """Return the configuration of a Llama of this shape, for up to `longest` tokens."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=longest,
    )


def random_model(
    shape: ModelShape,
    *,
    dtype: str | torch.dtype,
    device: str,
    longest: int,
    seed: int = 0,
    attention: str | None = None,
) -> Any:
    """Return a Llama of this shape for up to `longest` tokens, with random weights: speed does not depend on them."""
    config = random_config(shape, longest=longest)
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def require_memory(shape: ModelShape, dtype: str | torch.dtype, device: str, tokens: int) -> None:
    """Raise InputError if weights of this shape and K and V of `tokens` tokens exceed the device's total memory."""
    assert isinstance(dtype, torch.dtype)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = 2 * shape.hidden * (queries + keys) + 3 * shape.hidden * shape.intermediate
    weights = (shape.layers * layer + 2 * VOCABULARY * shape.hidden) * dtype.itemsize
    needed, there = weights + 2 * shape.layers * keys * tokens * dtype.itemsize, memory_of(device)
    if needed > there:
        raise InputError(
            f"this shape needs {needed / 1e9:,.1f} GB for its weights and K/V of {tokens:,} tokens, but {device} has "
            f"{there / 1e9:,.1f} GB: measure a smaller shape, shorter prompts, or fewer at once"
        )


def memory_of(device: str) -> int:
    """Return the total memory of a device in bytes, including memory in use."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).total_memory)
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
