"""vLLM's model runner V1, here for a CPU: its batch starts each step's plan."""

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker


class HaltingRunner(CPUModelRunner):
    """A runner that starts the plan of a step before the metadata of its attention are built."""

    def load_model(self, *args: Any, **options: Any) -> None:
        super().load_model(*args, **options)
        self.get_model().settle()

    def _update_states(self, scheduler_output: Any) -> Any:
        gone = scheduler_output.finished_req_ids | (scheduler_output.preempted_req_ids or set())
        self.get_model().halting.waiting.forget(gone)
        return super()._update_states(scheduler_output)

    def _build_attention_metadata(self, *args: Any, **options: Any) -> Any:
        halting, batch = self.get_model().halting, self.input_batch
        scheduled = options.get("num_scheduled_tokens")  # by request; None in a warm-up, which has no requests
        if scheduled is None:
            halting.begin(None)
        else:
            choices = [halting.choice_of(self.requests[name].sampling_params) for name in batch.req_ids]
            counts = zip(batch.num_prompt_tokens, batch.num_computed_tokens_cpu, strict=True)
            rows = zip(choices, counts, batch.req_ids, strict=False)  # counts have room for more requests
            halting.begin([halting.row(name, choice, *count, scheduled[name]) for choice, count, name in rows])
        return super()._build_attention_metadata(*args, **options)


class HaltingCPUWorker(CPUWorker):
    """A worker whose runner is a HaltingRunner."""

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.__class__ = HaltingRunner
