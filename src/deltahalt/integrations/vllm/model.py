"""vLLM's models with a decoder loop in which tokens halt."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context
from vllm.model_executor.models import llama, mistral, qwen2, qwen3

from deltahalt.integrations.vllm.folder import leave_policy
from deltahalt.integrations.vllm.groups import Groups
from deltahalt.integrations.vllm.heads import Heads
from deltahalt.integrations.vllm.metadata import halted_backend
from deltahalt.integrations.vllm.options import Choice, Settings, name_policy
from deltahalt.integrations.vllm.parts import READABLE, split
from deltahalt.integrations.vllm.plan import Plan, Row
from deltahalt.integrations.vllm.refusals import refuse_unsupported
from deltahalt.integrations.vllm.shared import Halting, log
from deltahalt.integrations.vllm.specs import FullSpec, HaltedSpec, set_spec
from deltahalt.integrations.vllm.versions import PACKAGE
from deltahalt.integrations.vllm.waiting import States
from deltahalt.policies.layer_view import LayerView
from deltahalt.policies.text import format_policy

CONTINUED = "continued"  # the states from which deep layers go on
# What deep layers run: states [k, D], positions [k], and index [k] in the step's n tokens, n for those of earlier steps
Run = tuple[torch.Tensor, ...]


class HaltingModel(nn.Module):
    """A causal language model of vLLM whose prompts halt.

    Each step runs its layers in two parts. Where tokens halt, the second part runs those that stay.
    """

    model: Any
    halting: Halting
    reads: Sequence[str]  # names of what the policy reads
    heads: Heads
    parts: tuple[Any, Any]  # shallow and deep; in a tuple, so that their weights are not listed twice

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        settings = Settings.of(vllm_config.additional_config)
        assert settings is not None  # else vLLM's own class is used
        refuse_unsupported(vllm_config, settings)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.vllm_config = vllm_config
        self.settings = settings
        self.budget: int = vllm_config.scheduler_config.max_num_batched_tokens
        self.longest: int = vllm_config.model_config.max_model_len
        self.dtype: torch.dtype = vllm_config.model_config.dtype

    def settle(self) -> None:
        """Choose the policy, which a profile finds by the weights, and put it into the layers. Raises as `Settings`."""
        policy = self.settings.resolved(self.model)
        name_policy(self.vllm_config, policy)  # before anything is compiled
        self.halting = Halting(self.settings, policy, self.budget)
        self.reads = sorted(policy.reads & READABLE)
        self.heads = Heads(self.model.layers[self.halting.start].self_attn, self.vllm_config)
        after_attention = policy.boundary == "attention"
        self.parts = split(
            self.model, self.vllm_config, self.halting.start, after_attention=after_attention, reads=self.reads
        )
        log.info("deltahalt: layer %d decides, by %s", self.halting.start, format_policy(policy))
        if get_tensor_model_parallel_rank() == 0:
            leave_policy(self.vllm_config, policy)
        self._set_backends([layer.self_attn.attn for layer in self.model.layers])

    def _set_backends(self, attentions: Sequence[Any]) -> None:
        """Let the attention of deep layers count the tokens that they hold, and have blocks for these alone."""
        config, shallow = self.vllm_config, self.halting.start + 1
        requests, device = config.scheduler_config.max_num_seqs, torch.device(config.device_config.device)
        lengths = torch.zeros(requests, dtype=torch.int32, device=device)
        backend = halted_backend(attentions[shallow].attn_backend, self.halting, lengths)
        for attention in attentions[shallow:]:
            attention.attn_backend = backend
        dropped = Choice(self.halting.policy).dropped(self.longest, self.settings.min_prompt_tokens)
        share = 1 - dropped / self.longest
        groups = Groups.best(shallow, len(attentions) - shallow, share)
        one_kind = config.scheduler_config.disable_hybrid_kv_cache_manager
        problem = "vLLM's hybrid KV cache manager is off" if one_kind else groups.problem(share)
        if problem is not None:
            log.info("deltahalt: blocks of tokens that halt in deep layers stay unused, since %s", problem)
            return
        for number, attention in enumerate(attentions):
            set_spec(attention, FullSpec if number < groups.full else HaltedSpec)

    @classmethod
    def get_model_state_cls(cls) -> Any:
        """The class in which vLLM's runner V2 keeps requests."""
        return import_module(f"{PACKAGE}.runner_v2").HaltingState

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final states [n, D] of the step's n tokens; NaN for those that halted or wait, zeros for a chunk's last."""
        context = get_forward_context()
        profiled = context.attn_metadata is None
        plan, slots = (None, {}) if profiled else (self.halting.plan, self.halting.slots)
        if slots:
            context.slot_mapping = context.slot_mapping | slots
        room = self._room_for_states(positions.device) if profiled else None
        shallow, deep = self.parts
        hidden, residual, *read = shallow(input_ids, positions)
        if plan is None or not plan.halts:
            whole: torch.Tensor = deep(positions, hidden, residual)
            del room
            return whole
        states = {CONTINUED: hidden + residual, **dict(zip(self.reads, read, strict=True))}
        del hidden, residual, read
        return self._halted(states, positions, plan)

    def _room_for_states(self, device: torch.device) -> torch.Tensor:
        """As much as the longest prompt takes, or all prompts of a step: their states, and those that deep layers run.

        In the run by which vLLM measures how much memory a step takes, it stands for these.
        """
        tokens, hidden = max(self.longest, self.halting.budget), self.model.config.hidden_size
        widths = {"queries": self.heads.queries, "keys": self.heads.keys}
        width = sum(widths.get(name, hidden) for name in self.reads) + 2 * hidden
        return torch.empty((tokens, width), dtype=self.dtype, device=device)

    def _halted(self, states: States, positions: torch.Tensor, plan: Plan) -> torch.Tensor:
        context, count, (_, run) = get_forward_context(), len(positions), self.parts
        whole = states[CONTINUED].new_full((count + 1, states[CONTINUED].shape[-1]), torch.nan)
        for row, end in zip(plan.rows, plan.starts[1:], strict=True):
            if row.waits:
                whole[end - 1] = 0  # vLLM samples from it, and discards the token
        rows = list(self._continued(plan, states, positions))
        if plan.pieces:
            parts = chain.from_iterable(rows if plan.whole else zip(*rows, strict=True))
            sizes = [int(piece.starts[-1]) for piece in plan.pieces]
            pieces = [torch.cat(part).split(sizes) for part in zip(*parts, strict=True)]
            for piece, deep, places, targets in zip(plan.pieces, *pieces, strict=True):
                metadata, slots = self.halting.enter(piece)
                context.attn_metadata = context.attn_metadata | metadata
                context.slot_mapping = context.slot_mapping | slots
                whole[targets] = run(places, deep, torch.zeros_like(deep))
        return whole[:count]  # the last is for tokens of earlier steps

    def _continued(self, plan: Plan, states: States, positions: torch.Tensor) -> Iterator[tuple[Run, Run]]:
        """For each request, what deep layers run of it before those tokens from which the policy chooses, and after.

        States of prompts whose last chunk has not come are kept.
        """

        def unchanged(begin: int, end: int) -> Run:
            here = torch.arange(begin, end, device=positions.device)
            return states[CONTINUED][begin:end], positions[begin:end], here

        for row, begin, end in zip(plan.rows, plan.starts, plan.starts[1:], strict=False):
            first, last = (int(begin) + place for place in row.chosen)
            own = {name: part[first:last] for name, part in states.items()}
            after = unchanged(last, end)
            if row.waits:
                self.halting.waiting.add(row, own)
            if row.halts:
                own = self.halting.waiting.whole(row, own)
                active = self._active(row, own)
                places = active + row.prefix
                here = (places - row.computed + begin).masked_fill(places < row.computed, len(positions))
                kept = own[CONTINUED][active], places.to(positions.dtype), here
                after = tuple(map(torch.cat, zip(kept, after, strict=True)))
            yield unchanged(begin, first), after

    def _active(self, row: Row, states: States) -> torch.Tensor:
        """The index [k], among all tokens of a prompt after its prefix, of those that stay active."""
        assert row.policy is not None  # else nothing halts
        continued = states[CONTINUED]
        unread = continued[:0]
        view = LayerView(
            layer=self.halting.start,
            prompt=len(continued),
            positions=torch.arange(len(continued), device=continued.device),
            hidden_in=states.get("hidden_in", unread),
            update=states.get("update", unread),
            hidden_out=None if row.policy.boundary == "attention" else continued,
            queries=lambda count: self.heads.every_query(states["queries"][-count:]),
            keys=lambda: self.heads.every_key(states["keys"]),
            scaling=self.heads.scaling,
        )
        return row.policy.choose(row.policy.score(view), view)


class LlamaForCausalLM(HaltingModel, llama.LlamaForCausalLM):
    """Llama whose prompts halt."""


class MistralForCausalLM(HaltingModel, mistral.MistralForCausalLM):
    """Mistral, without windows, whose prompts halt."""


class Qwen2ForCausalLM(HaltingModel, qwen2.Qwen2ForCausalLM):
    """Qwen2 or Qwen2.5 whose prompts halt."""


class Qwen3ForCausalLM(HaltingModel, qwen3.Qwen3ForCausalLM):
    """Qwen3 whose prompts halt."""
