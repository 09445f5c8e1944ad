"""Requests that cannot be right are refused before they reach the engine: over HTTP, with status 400.

vLLM lets a logits processor check the parameters of each request. Those here change no logits: `check_v1` is for its
model runner V1, `check_v2` for V2.
"""

from typing import Any

import torch

from deltahalt.errors import InputError
from deltahalt.integrations.vllm.options import KEY, OFF, request_policy
from deltahalt.policies.base import Policy

OF_THE_PROMPT = ("prompt_logprobs", "prompt_logprob_token_ids")


class RequestCheck:
    """The part that the logits processors of both runners share."""

    def __init__(self, *_: Any) -> None:
        """Takes what a runner gives, and needs none of it."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise InputError or PolicyError for a request's sampling parameters that do not work with halting."""
        if request_policy(Policy(), sampling_params.extra_args) is None:
            return
        for name in OF_THE_PROMPT:
            if getattr(sampling_params, name, None) is not None:
                raise InputError(
                    f'{name} needs all tokens of the prompt in all layers: add "vllm_xargs": {{"{KEY}": "{OFF}"}} to '
                    f'the request, or in Python extra_args={{"{KEY}": "{OFF}"}} to its SamplingParams'
                )

    def apply(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        """The same logits."""
        return logits
