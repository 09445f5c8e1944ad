"""A host's decoder with the facts of it that no call changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltahalt.flops import ModelShape
from deltahalt.host.compat import CACHE
from deltahalt.host.families import family_of
from deltahalt.host.families.base import Family, Module, Rotary


@dataclass(frozen=True)
class HostDecoder:
    """The decoder `module` of a Hugging Face model; `family` knows the names of its parts."""

    module: Module
    family: Family
    shape: ModelShape

    @classmethod
    def of(cls, module: Module) -> "HostDecoder":
        """Raises UnsupportedError for an unknown family, or a variant of one that cannot be halted."""
        return cls(module, family_of(module.config), ModelShape.of(module.config))

    @property
    def config(self) -> Any:
        """The host's configuration of the decoder."""
        return self.module.config

    @property
    def attention(self) -> str:
        """Name of the host's attention implementation, such as sdpa."""
        return str(self.config._attn_implementation)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer, how many tokens back it attends, itself included; None for all."""
        return self.shape.windows

    @property
    def layers(self) -> Sequence[Module]:
        """The host's decoder layers, in order."""
        return self.family.layers(self.module)[: self.shape.layers]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, n, D] of token ids [B, n]."""
        return self.family.embed(self.module, ids)

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, n, D] after the decoder's final norm."""
        out: torch.Tensor = self.family.final_norm(self.module)(hidden)
        return out

    def rotary_of(self, layer: int, rotary: Mapping[str, Rotary]) -> Rotary:
        """cos and sin of a layer. rotary: of all kinds of layers."""
        return rotary[self.family.rotary_kind(self.config, layer)]

    def layer_inputs(
        self, layer: int, rotary: Mapping[str, Rotary], mask: torch.Tensor | None, cache: Any, *, use_cache: bool
    ) -> dict[str, Any]:
        """Keyword arguments for the host's layer. cache: the host's, or what stands in for it."""
        return {
            "attention_mask": mask,
            "position_embeddings": self.family.for_layer(self.rotary_of(layer, rotary)),
            "position_ids": None,  # the host would read gaps in them as packed sequences
            CACHE: cache,
            "use_cache": use_cache,
        }
