"""Requests that cannot be right are refused before they reach the engine: over HTTP, with status 400.

vLLM lets a logits processor check the parameters of each request. Those here change no logits: `check_v1` is for its
model runner V1, `check_v2` for V2.
"""

from typing import Any

import torch

from deltahalt.integrations.vllm.options import request_choice
from deltahalt.policies.base import Policy


class RequestCheck:
    """The part that the logits processors of both runners share."""

    def __init__(self, *_: Any) -> None:
        """Takes what a runner gives, and needs none of it."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise InputError or PolicyError for a request's sampling parameters that do not work with halting."""
        request_choice(Policy(), sampling_params)

    def apply(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        """The same logits."""
        return logits
