"""vLLM's model runner V2, the usual one on GPUs: what it keeps of requests starts each step's plan."""

from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from deltahalt.integrations.vllm.options import Choice


class HaltingState(DefaultModelState):
    """The runner's state, with what each request has chosen, and its prompt's length."""

    def __init__(self, vllm_config: Any, model: Any, *args: Any, **options: Any) -> None:
        super().__init__(vllm_config, model, *args, **options)
        model.settle()
        self.halting = model.halting
        self.prompts: dict[str, tuple[Choice, int]] = {}  # by request

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        choice = self.halting.choice_of(new_req_data.sampling_params)
        self.prompts[new_req_data.req_id] = choice, len(new_req_data.prompt_token_ids)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self.prompts.pop(req_id, None)
        self.halting.waiting.forget([req_id])

    def prepare_attn(self, input_batch: Any, cudagraph_mode: Any, *args: Any, **options: Any) -> Any:
        names = input_batch.req_ids
        if all(name in self.prompts for name in names):
            counts = zip(input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens, strict=True)
            rows = zip(names, counts, strict=True)
            self.halting.begin([self.halting.row(name, *self.prompts[name], *count) for name, count in rows])
        else:
            self.halting.begin(None)  # a warm-up, whose requests are not real
        plan = self.halting.plan
        if plan is not None and plan.halts and cudagraph_mode == CUDAGraphMode.FULL:
            self._run_chunks(input_batch, *args)
            self.halting.begin([row.decoding for row in plan.rows])
        return super().prepare_attn(input_batch, cudagraph_mode, *args, **options)

    def _run_chunks(self, batch: Any, tables: Any, slots: torch.Tensor, groups: Any, cache: Any) -> None:
        """Run a step before its replay, in which deep layers would have one token of each request.

        vLLM replays a step with a chunk of one token. After this run, deep layers hold what a decoding request has.
        """
        count, tokens = batch.num_reqs, batch.num_tokens
        tables, slots = tuple(table[:count] for table in tables), slots[:, :tokens]
        metadata = super().prepare_attn(batch, CUDAGraphMode.NONE, tables, slots, groups, cache)
        by_layer = build_slot_mappings_by_layer(slots, cache)
        with set_forward_context(metadata, self.vllm_config, num_tokens=tokens, slot_mapping=by_layer):
            self.model(batch.input_ids[:tokens], batch.positions[:tokens])
