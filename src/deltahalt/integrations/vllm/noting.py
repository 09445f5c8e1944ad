"""vLLM's schedulers where each prompt that halts is noted: by a line in the log, and in the counts at /metrics."""

import time
from typing import Any

from deltahalt.integrations.vllm.choosing import Choosing
from deltahalt.integrations.vllm.counts import Counts
from deltahalt.integrations.vllm.shared import log


class Noting(Choosing):
    """The part that both schedulers have in common."""

    requests: dict[str, Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._layers: int = self.vllm_config.model_config.hf_text_config.num_hidden_layers
        self._counts = Counts(self.vllm_config)
        # By request whose first token has not come: when its first step began, and its number of tokens in the cache
        self._begun: dict[str, tuple[float, int]] = {}

    def schedule(self, *args: Any, **options: Any) -> Any:
        """The next step, in which some requests may be there for the first time."""
        begin = time.monotonic()
        step: Any = super().schedule(*args, **options)  # type: ignore[misc]
        for name in step.finished_req_ids:
            self._begun.pop(name, None)
        for new in step.scheduled_new_reqs:
            if self.requests[new.req_id].num_output_tokens == 0:  # else it was preempted
                self._begun.setdefault(new.req_id, (begin, new.num_computed_tokens))
        return step

    def update_from_output(self, scheduler_output: Any, *args: Any, **options: Any) -> Any:
        """What the step gave. The tokens that it sampled are on the CPU by now."""
        names = self._begun.keys() & self.requests.keys() & scheduler_output.num_scheduled_tokens.keys()
        served = [self.requests[name] for name in names]  # those that finish now leave `requests`
        given = super().update_from_output(scheduler_output, *args, **options)  # type: ignore[misc]
        for request in served:
            if request.num_output_tokens:
                self._note(request, *self._begun.pop(request.request_id))
        return given

    def _note(self, request: Any, begin: float, cached: int) -> None:
        dropped = self._choice(request).dropped(request.num_prompt_tokens, self._shortest)
        if not dropped:
            return
        prompt, start = request.num_prompt_tokens, int(self._policy.start)
        log.info(
            "request %s: %d of %d tokens stay; layers 0-%d ran %d, layers %d-%d ran %d; prefill %.1f ms",
            request.request_id,
            prompt - dropped,
            prompt,
            start,
            prompt - cached,
            start + 1,
            self._layers - 1,
            prompt - dropped - cached,
            1000 * (time.monotonic() - begin),
        )
        self._counts.add(1, prompt, prompt - dropped)
