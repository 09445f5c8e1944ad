"""The masking oracle for ViTs that run batches: one image at a time, in raster order, with a dense attention matrix.

It shares nothing with the engine or with the host's forward, save for the modules that hold weights. Patches that
halted are read by nobody; what comes of a square of patches is told by their coordinates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltahalt.host.compat import bare_tower

# Called behind the attention of a block ("attention") or behind the whole block, with its number.
Change = Callable[[str, int, "Patches"], "Patches"]
SIDES = {"llava": 1, "llava-siglip": 1, "gemma3": 2, "idefics3": 2, "smolvlm": 2}  # patches along a token
FEATURES = {"llava": -2, "llava-siglip": -1}  # hidden state that features are made of


@dataclass(frozen=True)
class Patches:
    """Rows of one image: states [s, D], place in raster order [s] (-1 for the class token, which comes first), how much
    each counts as a key (0 for halted ones), and queries and keys [s, heads, d] of the latest block."""

    states: torch.Tensor
    places: torch.Tensor
    sizes: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor

    @property
    def lead(self) -> int:
        return int((self.places < 0).sum())


def tower(model: Any) -> Any:
    """The module that has embeddings and encoder."""
    base = model.model
    return bare_tower(base.vision_tower if hasattr(base, "vision_tower") else base.vision_model)


def token_of(name: str, patches: int) -> torch.Tensor:
    """The visual token that each patch in raster order is of, [patches]."""
    side, columns = SIDES[name], math.isqrt(patches)
    number = torch.arange(patches)
    return number // columns // side * (columns // side) + number % columns // side


def embedded(name: str, core: Any, image: torch.Tensor) -> torch.Tensor:
    """States before the first block, [s, D]; image: [3, height, width]."""
    if name in ("idefics3", "smolvlm"):
        patches = torch.ones(1, *(size // core.patch_size for size in image.shape[1:]), dtype=torch.bool)
        return core.embeddings(image[None], patches)[0]
    states = core.embeddings(image[None])[0]
    return core.pre_layrnorm(states) if name == "llava" else states


def run(name: str, model: Any, image: torch.Tensor, change: Change) -> list[Patches]:
    """The rows before the first block, and behind each."""
    core, nothing = tower(model), torch.empty(0)
    states = embedded(name, core, image)
    places = torch.arange(len(states)) - int(name == "llava")
    found = [Patches(states, places, torch.ones(len(states)), nothing, nothing)]
    for index, block in enumerate(core.encoder.layers):
        patches = found[-1]
        update, queries, keys = attention(block, patches)
        patches = replace(patches, states=patches.states + update, queries=queries, keys=keys)
        patches = change("attention", index, patches)
        states = patches.states + block.mlp(block.layer_norm2(patches.states))
        found.append(change("block", index, replace(patches, states=states)))
    return found


def attention(block: Any, patches: Patches) -> tuple[torch.Tensor, ...]:
    """Output of a block's attention, [s, D], and its queries and keys, [s, heads, d]."""
    attn, normed = block.self_attn, block.layer_norm1(patches.states)
    queries, keys, values = (part(normed).view(len(normed), 2, -1) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
    logits = torch.einsum("qhd,khd->hqk", queries, keys) * queries.shape[-1] ** -0.5 + patches.sizes.log()
    mixed = torch.einsum("hqk,khd->qhd", logits.softmax(dim=-1), values)
    return attn.out_proj(mixed.flatten(1)), queries, keys


def outgoing(name: str, model: Any, found: list[Patches]) -> torch.Tensor:
    """What the host's projector is given of the rows that are left, [s, D]."""
    if name in FEATURES:
        taken, last = found[FEATURES[name]], found[-1]
        return taken.states[torch.isin(taken.places, last.places)]
    return tower(model).post_layernorm(found[-1].states)


def features(name: str, model: Any, found: list[Patches], states: torch.Tensor) -> torch.Tensor:
    """Features of all tokens, [tokens, D], of states [s, D] of the rows that are left; those of others mean nothing."""
    full = torch.zeros(found[0].states.shape)
    full[found[-1].places + found[0].lead] = states
    if name in ("idefics3", "smolvlm"):
        return model.model.connector(full[None])[0]
    return model.model.multi_modal_projector(full[None, found[0].lead :])[0]
