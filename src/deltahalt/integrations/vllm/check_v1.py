"""The check of requests for vLLM's model runner V1."""

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

from deltahalt.integrations.vllm.admission import RequestCheck


class RequestCheckV1(RequestCheck, LogitsProcessor):
    """A logits processor that only checks requests."""

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        """Keeps nothing."""
