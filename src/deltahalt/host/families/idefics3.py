"""Idefics3 and SmolVLM, which have a Llama decoder."""

from typing import Any

import torch

from deltahalt.host.families.vision import Module, VisionFamily
from deltahalt.kinds import IMAGE


class Idefics3(VisionFamily):
    """Idefics3. In some versions one method of the host finds placeholders and fills them, and returns embeddings."""

    model_types = ("idefics3", "smolvlm")

    def finder(self, base: Module) -> str:
        return "inputs_merger" if hasattr(base, "inputs_merger") else super().finder(base)

    def kinds(self, base: Module, found: Any, arguments: dict[str, Any]) -> torch.Tensor:
        if not hasattr(base, "inputs_merger"):
            return super().kinds(base, found, arguments)
        placeholder, ids = base.config.image_token_id, arguments["input_ids"]
        if ids is not None:
            return IMAGE * (ids == placeholder).long()
        embeds = arguments["inputs_embeds"]
        embedding = base.get_input_embeddings()(torch.tensor(placeholder, device=embeds.device))
        return IMAGE * (embeds == embedding).all(dim=-1).long()
