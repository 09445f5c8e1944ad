"""The interface between the engine and a model family's decoder; a family file defines what differs."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.activations import SiLUActivation

from deltahalt.host.compat import attention_output

Module = Any  # a module of the host, whose attributes have names that a family file knows
Rotary = tuple[torch.Tensor, torch.Tensor]  # cos, sin, each [B, n, d]


class Family:
    """A pre-norm decoder with separate q, k and v projections.

    A subclass in its own file lists its `model_types` (as in `config.model_type`) and overrides what differs. `layer`
    is a decoder layer of the host. Hidden states are [B, n, D].
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    own: ClassVar[tuple[str, ...]] = ()  # arguments of the host's decoder that `after_layer` needs
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]]  # the host's apply_rotary_pos_emb, a staticmethod

    def unsupported(self, config: Any) -> str | None:
        """Return why this configuration cannot be halted, or None if it can."""
        return None

    def windows(self, config: Any) -> tuple[int | None, ...]:
        """Return each layer's attention window in tokens, the query itself included; None for the whole prompt."""
        return tuple(config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types)

    def layers(self, decoder: Module) -> list[Module]:
        """Return the decoder's layers, in order."""
        return list(decoder.layers)

    def embed(self, decoder: Module, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, n, D] of token ids [B, n], as they enter the first layer."""
        embedded: torch.Tensor = decoder.embed_tokens(ids)
        return embedded

    def final_norm(self, decoder: Module) -> Module:
        """Return the norm between the last layer and the logits."""
        return decoder.norm

    def rotary(self, decoder: Module, hidden: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Rotary]:
        """Return cos and sin of the tokens, by kind of layer (see `rotary_kind`)."""
        return {"": decoder.rotary_emb(hidden, position_ids)}

    def rotary_kind(self, config: Any, layer: int) -> str:
        """Return the key of the entry of `rotary` that the layer uses."""
        return ""

    def for_layer(self, rotary: Rotary) -> Any:
        """Return cos and sin in the form that the host's layer takes."""
        return rotary

    def packing(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        """Return the positions [B, T] by which the host detects packed sequences; None if it does not detect them."""
        return position_ids

    def after_layer(self, index: int, hidden: torch.Tensor, columns: torch.Tensor, **own: Any) -> torch.Tensor:
        """Return the hidden states [B, n, D] after the decoder's own changes between layer `index` and the next.

        columns: [B, n], input column of each token; negative for padding.
        """
        return hidden

    def attention(self, layer: Module, hidden: torch.Tensor, **call: Any) -> torch.Tensor:
        """Return the attention output before the residual addition: U of DASH Eq. 1."""
        return attention_output(layer.self_attn(hidden_states=layer.input_layernorm(hidden), **call))

    def add_attention(self, layer: Module, hidden: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the hidden states between the layer's attention and its FFN."""
        return hidden + update

    def feed_forward(self, layer: Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after the layer's FFN, residual included."""
        out: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return out

    def rms_norms(self, layer: Module) -> list[Module]:
        """Return the norms in the layer that divide by the root mean square and multiply by their weight."""
        return [layer.input_layernorm, layer.post_attention_layernorm]

    def is_swiglu(self, layer: Module) -> bool:
        """Return whether the FFN is down_proj(silu(gate_proj(x)) * up_proj(x))."""
        parts = ("gate_proj", "up_proj", "down_proj")
        activation = getattr(layer.mlp, "act_fn", None)
        return isinstance(activation, (nn.SiLU, SiLUActivation)) and all(hasattr(layer.mlp, part) for part in parts)

    def queries(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Return queries after RoPE, [B, heads, n, d]."""
        return self._rotated(self._heads(layer, layer.self_attn.q_proj(layer.input_layernorm(hidden))), rotary)

    def keys(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Return keys after RoPE, as the cache holds them: [B, kv_heads, n, d]."""
        return self._keys(layer, layer.input_layernorm(hidden), rotary)

    def keys_values(self, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys after RoPE, and values, as the cache holds them: each [B, kv_heads, n, d]."""
        normed = layer.input_layernorm(hidden)
        return self._keys(layer, normed, rotary), self._heads(layer, layer.self_attn.v_proj(normed))

    def output(self, layer: Module, heads: torch.Tensor) -> torch.Tensor:
        """Return the attention output [B, n, D], projected from the output of the heads [B, heads, n, d]."""
        out: torch.Tensor = layer.self_attn.o_proj(heads.transpose(1, 2).flatten(2))
        return out

    def scaling(self, layer: Module) -> float:
        """Return the factor on the product of a query and a key."""
        return float(layer.self_attn.scaling)

    def device(self, layer: Module) -> torch.device:
        """Return the device of the layer's weights; "meta" if accelerate has offloaded them."""
        device: torch.device = layer.self_attn.o_proj.weight.device
        return device

    def offloaded(self, layer: Module) -> bool:
        """Return whether accelerate loads the layer's weights only while the layer runs."""
        return self.device(layer).type == "meta"

    def _keys(self, layer: Module, normed: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        return self._rotated(self._heads(layer, layer.self_attn.k_proj(normed)), rotary)

    def _heads(self, layer: Module, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)

    def _rotated(self, heads: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        cos, sin = (part.to(heads.device) for part in rotary)
        return self.rotate(heads[:, :0], heads, cos, sin)[1]  # the host rotates queries (here none) and keys together
