"""vLLM's model runner V1, which runs on a CPU: it starts each step's plan."""

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker


class HaltingRunner(CPUModelRunner):
    """A runner whose batch, before the metadata of its attention are built, becomes the plan."""

    def load_model(self, *args: Any, **options: Any) -> None:
        super().load_model(*args, **options)
        self.get_model().settle()

    def _build_attention_metadata(self, *args: Any, **options: Any) -> Any:
        halting, batch = self.get_model().halting, self.input_batch
        scheduled = options.get("num_scheduled_tokens")  # by request; None for steps without requests
        halting.begin(
            None
            if scheduled is None
            else (
                halting.row(
                    halting.policy_of(self.requests[name].sampling_params.extra_args),
                    int(batch.num_prompt_tokens[index]),
                    batch.num_computed_tokens_cpu[index],
                    scheduled[name],
                )
                for index, name in enumerate(batch.req_ids)
            )
        )
        return super()._build_attention_metadata(*args, **options)


class HaltingCPUWorker(CPUWorker):
    """A worker whose runner is a HaltingRunner."""

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.__class__ = HaltingRunner
