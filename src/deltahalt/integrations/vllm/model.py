"""vLLM's models with a decoder loop in which tokens halt."""

from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.models import llama, mistral, qwen2, qwen3

from deltahalt.errors import UnsupportedError
from deltahalt.integrations.vllm.metadata import halted_backend
from deltahalt.integrations.vllm.options import Settings
from deltahalt.integrations.vllm.plan import Plan
from deltahalt.integrations.vllm.refusals import refuse_unsupported
from deltahalt.integrations.vllm.shared import Halting, log
from deltahalt.integrations.vllm.versions import PACKAGE
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.text import format_policy

States = tuple[torch.Tensor, torch.Tensor]  # what a layer of vLLM returns: its FFN's output, and what it is added to


class HaltingModel(nn.Module):
    """A causal language model of vLLM whose prompts halt. Steps in which no token halts run vLLM's own loop."""

    model: Any
    halting: Halting

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        settings = Settings.of(vllm_config.additional_config)
        assert settings is not None  # else vLLM's own class is used
        refuse_unsupported(vllm_config, settings)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.settings = settings

    def settle(self) -> None:
        """Choose the policy, which a profile finds by the weights, and put it into the layers. Raises as `Settings`."""
        self.halting = Halting(self.settings, self.settings.resolved(self.model))
        log.info("deltahalt: layer %d decides, by %s", self.halting.start, format_policy(self.halting.policy))
        attentions = [layer.self_attn.attn for layer in self.model.layers[self.halting.start + 1 :]]
        backend = halted_backend(attentions[0].attn_backend, self.halting)
        for attention in attentions:
            attention.attn_backend = backend
        self.deep = [attention.layer_name for attention in attentions]

    @classmethod
    def get_model_state_cls(cls) -> Any:
        """The class in which vLLM's runner V2 keeps requests."""
        return import_module(f"{PACKAGE}.runner_v2").HaltingState

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final states [n, D] of the step's n tokens; NaN for those that halted."""
        context = get_forward_context()
        profiled = context.attn_metadata is None
        plan, slots = (None, None) if profiled else (self.halting.plan, self.halting.slots)
        if slots is not None:
            context.slot_mapping = context.slot_mapping | dict.fromkeys(self.deep, slots)
        if plan is None or not plan.halts:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        return self._halted(self.model.embed_input_ids(input_ids), positions, plan)

    def _halted(self, hidden: torch.Tensor, positions: torch.Tensor, plan: Plan) -> torch.Tensor:
        start, residual = self.halting.start, None
        for layer in self.model.layers[:start]:
            hidden, residual = layer(positions, hidden, residual)
        (hidden, residual), active = self._decided(self.model.layers[start], positions, hidden, residual, plan)
        deep_positions = positions[active]
        for layer in self.model.layers[start + 1 :]:
            hidden, residual = layer(deep_positions, hidden, residual)
        hidden, _ = self.model.norm(hidden, residual)
        whole = hidden.new_full((len(positions), hidden.shape[-1]), torch.nan)
        whole[active] = hidden
        return whole

    def _decided(
        self, layer: Any, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None, plan: Plan
    ) -> tuple[States, torch.Tensor]:
        """Run the layer that decides. Returns the states of tokens that stay active, and their index [k]."""
        policy = self.halting.policy
        inside = policy.boundary == "attention"
        if residual is None:
            normed, residual = layer.input_layernorm(hidden), hidden
        else:
            normed, residual = layer.input_layernorm(hidden, residual)
        before = residual.clone()  # the next norm may add to it in place, and overwrite the update
        update = layer.self_attn(positions=positions, hidden_states=normed)
        normed, residual = layer.post_attention_layernorm(update.clone(), residual)
        out = None if inside else layer.mlp(normed)
        after = None if out is None else out + residual
        active = torch.cat(list(self._active(plan, before, update, after)))
        if out is None:
            return (layer.mlp(normed[active]), residual[active]), active
        return (out[active], residual[active]), active

    def _active(self, plan: Plan, before: torch.Tensor, update: torch.Tensor, after: torch.Tensor | None) -> Any:
        """For each request, the index [k] in the step of its tokens that stay active."""
        for row, begin, end in zip(plan.rows, plan.starts, plan.starts[1:], strict=False):
            everything = torch.arange(begin, end, device=before.device)
            if not row.halts or row.policy is None:
                yield everything
                continue
            own = slice(begin, begin + row.prompt)
            view = LayerView(
                layer=self.halting.start,
                prompt=row.prompt,
                positions=everything[: row.prompt] - begin,
                hidden_in=before[own],
                update=update[own],
                hidden_out=None if after is None else after[own],
                queries=_split_over_gpus,
                keys=_split_over_gpus,
                scaling=1.0,
            )
            yield row.policy.choose(row.policy.score(view), view) + begin
            yield everything[row.prompt :]


def _split_over_gpus(*_: Any) -> NoReturn:
    raise UnsupportedError("in vLLM a policy cannot read queries and keys, whose heads are split over GPUs")


class LlamaForCausalLM(HaltingModel, llama.LlamaForCausalLM):
    """Llama whose prompts halt."""


class MistralForCausalLM(HaltingModel, mistral.MistralForCausalLM):
    """Mistral, without windows, whose prompts halt."""


class Qwen2ForCausalLM(HaltingModel, qwen2.Qwen2ForCausalLM):
    """Qwen2 or Qwen2.5 whose prompts halt."""


class Qwen3ForCausalLM(HaltingModel, qwen3.Qwen3ForCausalLM):
    """Qwen3 whose prompts halt."""
