"""Tiny models with random weights, one for each family and variant that the engine has to get right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Windows = tuple[int | None, ...]

LAYERS = 6
VOCAB = 128
WINDOW = 8  # far below every prompt of the tests
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,  # so that generate() takes every step it is asked for
}

FULL: Windows = (None,) * LAYERS
SLIDING: Windows = (WINDOW,) * LAYERS


@dataclass(frozen=True)
class Variant:
    """A tiny model. windows: by layer, how many columns back it attends, stated here and not read from the config."""

    model: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    options: dict[str, Any]
    windows: Windows = FULL


def _kinds(windows: Windows) -> list[str]:
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


QWEN2_WINDOWS: Windows = (None, None, None, WINDOW, WINDOW, WINDOW)
GEMMA3_WINDOWS: Windows = (WINDOW, None, None, WINDOW, None, WINDOW)

VARIANTS = {
    "llama": Variant(LlamaForCausalLM, LlamaConfig, {}),
    "llama-dynamic-rope": Variant(
        LlamaForCausalLM,
        LlamaConfig,
        {
            "max_position_embeddings": 16,  # below the prompts: the frequencies change with the length
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "qwen2": Variant(Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-sliding": Variant(
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
        QWEN2_WINDOWS,
    ),
    "qwen3": Variant(Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24}),
    "mistral": Variant(MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-sliding": Variant(MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}, SLIDING),
    "phi3": Variant(Phi3ForCausalLM, Phi3Config, {"sliding_window": None}),
    "phi3-partial": Variant(Phi3ForCausalLM, Phi3Config, {"sliding_window": None, "partial_rotary_factor": 0.5}),
    "phi3-longrope": Variant(
        Phi3ForCausalLM,
        Phi3Config,
        {
            "sliding_window": None,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,  # below the prompts: the long factors apply
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [1.0 + 0.2 * pair for pair in range(8)],
            },
        },
    ),
    "phi3-sliding": Variant(Phi3ForCausalLM, Phi3Config, {"sliding_window": WINDOW}, SLIDING),
    "gemma3": Variant(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"head_dim": 24, "sliding_window": WINDOW, "layer_types": _kinds(GEMMA3_WINDOWS)},
        GEMMA3_WINDOWS,
    ),
    "gemma3-full": Variant(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"head_dim": 24, "sliding_window": WINDOW, "layer_types": _kinds(FULL)},
    ),
}
SLIDING_VARIANTS = [name for name, variant in VARIANTS.items() if any(variant.windows)]
FULL_VARIANTS = [name for name, variant in VARIANTS.items() if not any(variant.windows)]


def tiny(
    name: str = "llama", attention: str = "sdpa", dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: Any
) -> Any:
    """A tiny causal language model, a name of VARIANTS; the same weights for the same seed. options: for its config."""
    variant = VARIANTS[name]
    config = variant.config(**{**SIZES, **variant.options, **options}, attn_implementation=attention)
    model = variant.model(config)
    draw_weights(model, seed)
    return model.to(dtype).eval()


def draw_weights(model: nn.Module, seed: int) -> None:
    """Weights large enough that attention is sharp: a token read in error shows in the first digits of the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:  # norms and biases, about the value that the host gave them
                weight.add_(0.2 * noise)
            else:
                weight.copy_(noise / weight.shape[-1] ** 0.5)


def prompts(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, [B, longest] each: a row of random tokens for each length, padded on the left."""
    width = max(lengths)
    ids = torch.randint(1, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All that the modules of a model hold, hooks included: equal before and after whoever puts things back."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }
