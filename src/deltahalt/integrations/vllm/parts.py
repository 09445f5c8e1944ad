"""The decoder in two parts: layers that run all tokens, and layers that run those that stay. vLLM compiles each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import support_torch_compile
from vllm.config import set_current_vllm_config

READABLE = frozenset({"hidden_in", "update", "queries", "keys"})


@support_torch_compile
class ShallowPart(nn.Module):
    """The layers up to the one that decides, which runs up to the policy's boundary.

    reads: names of what the policy reads there, out of READABLE.
    """

    embed_tokens: Any
    layers: Any
    decider: Any

    def __init__(self, *, model: Any, start: int, after_attention: bool, reads: Sequence[str]) -> None:
        super().__init__()
        self.embed_tokens, self.layers = model.embed_tokens, model.layers[:start]
        self.decider = model.layers[start]
        self.after_attention = after_attention
        self.reads = tuple(reads)
        self.attended: list[Any] = []  # queries and keys, from when the attention gets them until they are read
        if self.reads_heads:
            self.decider.self_attn.attn.register_forward_pre_hook(lambda _, given: self.attended.append(given[:2]))

    @property
    def reads_heads(self) -> bool:
        """Whether the policy reads queries or keys."""
        return not {"queries", "keys"}.isdisjoint(self.reads)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Two tensors [n, D] whose sum are the states of n tokens at the boundary, and what the policy reads, [n, ...].

        Queries and keys are those of this GPU, [n, its heads * d].
        """
        hidden, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        layer = self.decider
        if residual is None:
            normed, residual = layer.input_layernorm(hidden), hidden
        else:
            normed, residual = layer.input_layernorm(hidden, residual)
        update = layer.self_attn(positions=positions, hidden_states=normed)
        states = {"hidden_in": residual, "update": update}
        if self.reads_heads:
            states["queries"], states["keys"] = self.attended.pop()
        read = [states[name].clone() for name in self.reads]  # the next norm adds to both in place
        if self.after_attention:
            return update, residual, *read
        normed, residual = layer.post_attention_layernorm(update, residual)
        return layer.mlp(normed), residual, *read


@support_torch_compile
class DeepPart(nn.Module):
    """What comes after the boundary, with the last norm."""

    decider: Any
    layers: Any
    norm: Any

    def __init__(self, *, model: Any, start: int, after_attention: bool) -> None:
        super().__init__()
        self.decider = model.layers[start] if after_attention else None
        self.layers, self.norm = model.layers[start + 1 :], model.norm

    def forward(self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Final states [k, D] of k tokens, whose states at the boundary are the sum of two tensors [k, D]."""
        if self.decider is not None:
            hidden, residual = self.decider.post_attention_layernorm(hidden, residual)
            hidden = self.decider.mlp(hidden)
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden


def split(model: Any, config: Any, start: int, *, after_attention: bool, reads: Sequence[str]) -> tuple[Any, Any]:
    """The parts of a decoder of vLLM, with its own layers. Layer `start` decides."""
    with _compiled_as(config, "shallow"):
        shallow = ShallowPart(model=model, start=start, after_attention=after_attention, reads=reads)
    with _compiled_as(config, "deep"):
        deep = DeepPart(model=model, start=start, after_attention=after_attention)
    return shallow, deep


@contextmanager
def _compiled_as(config: Any, name: str) -> Iterator[None]:
    """Let vLLM keep what it compiles of the modules made here under a name."""
    with set_current_vllm_config(config), set_model_tag(f"deltahalt_{name}"):
        yield
