"""Tiny vision-language models with random weights, prompts with images made by hand for them, and their features."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from helpers.oracle import Feed
from helpers.tiny import FULL, GEMMA3_WINDOWS, SIZES, WINDOW, Windows, _kinds, draw_weights

IMAGE, VIDEO, START, END = 120, 121, 122, 123
PATCH, SIDE = 4, 16  # pixels
PIXELS = 3 * 2 * PATCH * PATCH  # of a patch of two frames, as Qwen takes them
UNIT = 4  # patches in a group
GRID = torch.tensor([[1, 6, 8], [1, 4, 4], [2, 8, 6], [1, 2, 2]])  # in patches: three images and a video of two frames
GROUPS = (12, 4, 24, 1)  # of each

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 2}
TOWER |= {"patch_size": PATCH, "num_channels": 3}
QWEN_TOWER = {"depth": 6, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_TOKENS |= {"vision_start_token_id": START, "vision_end_token_id": END}


def _mrope(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


@dataclass(frozen=True)
class VisionVariant:
    """A tiny vision-language model. text, tower: beyond the usual sizes. tokens: of one image; None where it varies."""

    model: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    text: dict[str, Any]
    tower: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    windows: Windows = FULL


VISION = {
    "qwen2_vl": VisionVariant(
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig,
        _mrope(2, 3, 3),
        QWEN_TOWER | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        QWEN_TOKENS,
    ),
    "qwen2_5_vl": VisionVariant(
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        _mrope(2, 3, 3),
        QWEN_TOWER
        | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "window_size": 16}
        | {"fullatt_block_indexes": [2, 5]},
        QWEN_TOKENS,
    ),
    "qwen3_vl": VisionVariant(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        {"head_dim": 24} | _mrope(4, 4, 4),
        QWEN_TOWER
        | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 64}
        | {"deepstack_visual_indexes": [0, 2, 4]},
        QWEN_TOKENS,
    ),
    "llava": VisionVariant(
        LlavaForConditionalGeneration,
        LlavaConfig,
        {"model_type": "llama"},
        TOWER | {"model_type": "clip_vision_model", "image_size": SIDE},
        {"image_token_index": IMAGE},
        tokens=16,
    ),
    "llava_onevision": VisionVariant(
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionConfig,
        {"model_type": "qwen2"},
        TOWER | {"model_type": "siglip_vision_model", "image_size": SIDE, "vision_use_head": False},
        {"image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": [[SIDE, SIDE]]},
        tokens=36,  # 4 x 4 of the whole, and 4 x 5 of its one tile with a token at the end of each line
    ),
    "gemma3": VisionVariant(
        Gemma3ForConditionalGeneration,
        Gemma3Config,
        {"head_dim": 24, "sliding_window": WINDOW, "layer_types": _kinds(GEMMA3_WINDOWS)},
        TOWER | {"image_size": 2 * SIDE, "vision_use_head": False},
        {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END, "mm_tokens_per_image": 16},
        tokens=16,
        windows=GEMMA3_WINDOWS,
    ),
    "idefics3": VisionVariant(
        Idefics3ForConditionalGeneration,
        Idefics3Config,
        {"model_type": "llama"},
        TOWER | {"image_size": 2 * SIDE},
        {"image_token_id": IMAGE, "scale_factor": 2},
        tokens=16,
    ),
    "smolvlm": VisionVariant(
        SmolVLMForConditionalGeneration,
        SmolVLMConfig,
        {"model_type": "llama"},
        TOWER | {"image_size": 2 * SIDE},
        {"image_token_id": IMAGE, "scale_factor": 2},
        tokens=16,
    ),
}
MROPE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def tiny_vision(
    name: str = "qwen2_vl",
    attention: str = "sdpa",
    *,
    seed: int = 0,
    tower: dict[str, Any] | None = None,
    whole: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A tiny vision-language model, a name of VISION; the same weights for the same seed.

    options, tower, whole: for the configuration of its decoder, of its ViT, and its own.
    """
    variant = VISION[name]
    text = {**SIZES, **variant.text, **options}
    config = variant.config(
        text_config=text, vision_config=variant.tower | (tower or {}), **variant.options | (whole or {})
    )
    for part in (config, config.text_config):
        part.bos_token_id = part.eos_token_id = None  # so that generate() takes every step it is asked for
        part.pad_token_id = 0
    config._attn_implementation = attention
    with torch.random.fork_rng():  # some hosts draw embeddings of one dimension, which keep their value
        torch.manual_seed(seed)
        model = variant.model(config)
    draw_weights(model, seed)
    return model.eval()


def pixels(grid: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Patches of random images of this grid, [S, PIXELS]."""
    patches = int(grid.prod(dim=1).sum())
    return torch.randn(patches, PIXELS, generator=torch.Generator().manual_seed(seed))


Row = tuple[int | tuple[int, int], ...]  # a number of text tokens, or an image's height and width in visual tokens
ALONE: tuple[Row, ...] = ((5, (2, 4), 9),)
SEVERAL: tuple[Row, ...] = ((4, (4, 2), 3, (3, 3), 11),)
BATCH: tuple[Row, ...] = (*SEVERAL, (3, (2, 3), 8))
ROWS = {"one image": ALONE, "two images": SEVERAL, "batch": BATCH}


@dataclass(frozen=True)
class Prompts:
    """Left-padded prompts with images. ids, mask: [B, T]. inputs: the rest of what a prefill takes."""

    ids: torch.Tensor
    mask: torch.Tensor
    inputs: dict[str, Any]
    positions: torch.Tensor | None = None  # [3, B, T] where the family has planes

    @property
    def blocks(self) -> torch.Tensor:
        """[B, T] the number of the image that a token is of; -1 for text."""
        return torch.where(self.visual, (self.ids == START).cumsum(dim=1), -1)

    @property
    def visual(self) -> torch.Tensor:
        """[B, T] bool."""
        return (self.ids == IMAGE) | (self.ids == VIDEO)

    def call(self) -> dict[str, Any]:
        """What generate() takes."""
        return {"input_ids": self.ids, "attention_mask": self.mask, **self.inputs}

    def feed(self, feed: Feed) -> torch.Tensor:
        """Logits of the last token, [B, 1, V], after a prefill by `feed`."""
        return feed(self.ids, self.mask, self.positions, logits_to_keep=1, **self.inputs)


def vision_prompts(model: Any, name: str, rows: tuple[Row, ...], *, only: int | None = None, seed: int = 0) -> Prompts:
    """Random text and random images for a model of VISION. only: make one of the rows, as it is in the batch."""
    generator = torch.Generator().manual_seed(seed)
    lines, images = [], []
    for number, row in enumerate(rows):
        line: list[int] = []
        for part in row:
            if isinstance(part, int):
                line += torch.randint(1, IMAGE, (part,), generator=generator).tolist()
                continue
            pixels, count = _image(name, part, generator)
            line += [START, *[IMAGE] * count, END]
            if only in (None, number):
                images.append((number, part, pixels))
        lines.append(line)
    lines = lines if only is None else [lines[only]]
    width = max(map(len, lines))
    ids = torch.tensor([[0] * (width - len(line)) + line for line in lines])
    mask = torch.tensor([[0] * (width - len(line)) + [1] * len(line) for line in lines])
    inputs = _inputs(name, images)
    types = (ids == IMAGE).long()
    taken = inspect.signature(model.forward).parameters
    inputs |= {key: types for key in ("mm_token_type_ids", "token_type_ids") if key in taken}
    positions = None
    if name in MROPE:
        known = inspect.signature(model.model.get_rope_index).parameters
        types_given = {"mm_token_type_ids": types} if "mm_token_type_ids" in known else {}
        grid = inputs.get("image_grid_thw")
        positions, _ = model.model.get_rope_index(ids, image_grid_thw=grid, attention_mask=mask, **types_given)
    return Prompts(ids, mask, inputs, positions)


def _image(name: str, size: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """An image's pixels and how many visual tokens it has."""
    if name in MROPE:
        height, width = size
        return torch.randn(4 * height * width, PIXELS, generator=generator), height * width
    variant = VISION[name]
    assert variant.tokens is not None
    side = variant.tower["image_size"]
    return torch.randn(3, side, side, generator=generator), variant.tokens


def _inputs(name: str, images: list[tuple[int, tuple[int, int], torch.Tensor]]) -> dict[str, Any]:
    if not images:
        return {}
    pixels = [image for _, _, image in images]
    if name in MROPE:
        grid = torch.tensor([[1, 2 * height, 2 * width] for _, (height, width), _ in images])
        return {"pixel_values": torch.cat(pixels), "image_grid_thw": grid}
    if name in ("idefics3", "smolvlm"):  # [rows, images, ...], rows of fewer images filled with empty ones
        numbers = sorted({row for row, _, _ in images})
        by_row = [[image for row, _, image in images if row == number] for number in numbers]
        most = max(map(len, by_row))
        filled = [[*own, *[torch.zeros_like(pixels[0])] * (most - len(own))] for own in by_row]
        return {"pixel_values": torch.stack([torch.stack(own) for own in filled])}
    if name == "llava_onevision":  # the whole image, and the tiles it is cut into
        sizes = torch.tensor([[SIDE, SIDE]] * len(images))
        return {"pixel_values": torch.stack(pixels)[:, None].repeat(1, 2, 1, 1, 1), "image_sizes": sizes}
    return {"pixel_values": torch.stack(pixels)}


def features_of(output: Any) -> list[torch.Tensor]:
    """The features in what a host's `get_image_features` returns, [tokens, D] by image, or one tensor of them all."""
    features = output if isinstance(output, (list, tuple, torch.Tensor)) else output.pooler_output
    return [features] if isinstance(features, torch.Tensor) else list(features)
