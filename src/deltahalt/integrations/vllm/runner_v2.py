"""vLLM's model runner V2, the usual one on GPUs: what it keeps of requests starts each step's plan."""

from typing import Any

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

    def prepare_attn(self, input_batch: Any, *args: Any, **options: Any) -> Any:
        names = input_batch.req_ids
        if all(name in self.prompts for name in names):
            counts = zip(input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens, strict=True)
            rows = zip(names, counts, strict=True)
            self.halting.begin([self.halting.row(name, *self.prompts[name], *count) for name, count in rows])
        else:
            self.halting.begin(None)  # a warm-up, whose requests are not real
        return super().prepare_attn(input_batch, *args, **options)
