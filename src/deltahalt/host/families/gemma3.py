"""Gemma 3, with norms before and after attention and FFN, two RoPEs, and bidirectional attention inside images."""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

from deltahalt.host.families.base import Module, Rotary
from deltahalt.host.families.qwen3 import Qwen3
from deltahalt.host.families.vision import VisionFamily
from deltahalt.kinds import IMAGE


class Gemma3Text(Qwen3):
    """A Gemma 3 decoder, which has norms also after attention and FFN."""

    model_types = ("gemma3_text",)
    rotate = staticmethod(apply_rotary_pos_emb)

    def unsupported(self, config: Any) -> str | None:
        if config.use_bidirectional_attention:
            return "this Gemma 3 is an encoder with bidirectional attention: give a causal decoder, which halting needs"
        return None

    def rotary(self, decoder: Module, hidden: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Rotary]:
        kinds = set(decoder.config.layer_types)
        return {kind: decoder.rotary_emb(hidden, position_ids, kind) for kind in kinds}

    def rotary_kind(self, config: Any, layer: int) -> str:
        return str(config.layer_types[layer])

    def rms_norms(self, layer: Module) -> list[Module]:
        return []  # they multiply by 1 + weight, in float32

    def add_attention(self, layer: Module, hidden: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = hidden + layer.post_attention_layernorm(update)
        return out

    def feed_forward(self, layer: Module, hidden: torch.Tensor) -> torch.Tensor:
        inner = layer.mlp(layer.pre_feedforward_layernorm(hidden))
        out: torch.Tensor = hidden + layer.post_feedforward_layernorm(inner)
        return out


class Gemma3(VisionFamily):
    """A Gemma 3 with vision. The host builds masks of the whole prompt before its decoder runs; here it gets none."""

    model_types = ("gemma3",)

    def divert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        mask = arguments.get("attention_mask")
        if isinstance(mask, dict):  # the caller built it for one length; the decoder refuses it
            return {}
        arguments["attention_mask"] = {}
        types = arguments.get("token_type_ids")
        return {"attention_mask": mask, "blocks": None if types is None else _blocks(types == IMAGE)}


def _blocks(image: torch.Tensor) -> torch.Tensor:
    """Return each token's image number [B, T], counting runs of True in `image` [B, T]; -1 for text."""
    begins = image & ~F.pad(image, (1, -1))
    return torch.where(image, begins.cumsum(dim=1), -1)
