"""vLLM's schedulers, which know what each request has chosen."""

from typing import Any

from deltahalt.integrations.vllm.folder import left_policy
from deltahalt.integrations.vllm.options import Choice, Settings, checked_choice


class Choosing:
    """The part that knows the policy of the engine and the choices of requests."""

    vllm_config: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        settings = Settings.of(self.vllm_config.additional_config)
        assert settings is not None  # else vLLM's own class is used
        self._shortest = settings.min_prompt_tokens
        self._policy = left_policy(self.vllm_config)

    def _choice(self, request: Any) -> Choice:
        return checked_choice(self._policy, request.sampling_params)
