"""The check of requests for vLLM's model runner V2."""

from typing import Any

from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from deltahalt.integrations.vllm.admission import RequestCheck


class RequestCheckV2(RequestCheck, LogitsProcessor):
    """A logits processor that only checks requests."""

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Whether logits of this request change: never."""
        return False
