"""vLLM's schedulers where deep layers have blocks only for the tokens that they hold."""

from math import ceil
from typing import Any

from deltahalt.integrations.vllm.choosing import Choosing
from deltahalt.integrations.vllm.options import Choice
from deltahalt.integrations.vllm.plan import held
from deltahalt.integrations.vllm.shared import log
from deltahalt.integrations.vllm.specs import HaltedBlocks


class Freeing(Choosing):
    """The part that both schedulers have in common. It changes nothing where deep layers have no own groups."""

    kv_cache_manager: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # By request whose prompt halts: the number of its prompt's tokens, of those that never halt, and that do
        self._halted: dict[str, tuple[int, int, int]] = {}
        groups = self.kv_cache_manager.coordinator.single_type_managers
        halted = [group for group in groups if isinstance(group, HaltedBlocks)]
        for group in halted:
            group.places = self._places
        if halted:
            self._show_room(len(groups) - len(halted), len(halted))

    def add_request(self, request: Any) -> None:
        """Queue a request."""
        choice = self._choice(request)
        dropped = choice.dropped(request.num_prompt_tokens, self._shortest)
        if dropped:
            self._halted[request.request_id] = request.num_prompt_tokens, choice.prefix, dropped
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **options: Any) -> Any:
        """The next step, which names the requests that are gone."""
        step: Any = super().schedule(*args, **options)  # type: ignore[misc]
        for name in step.finished_req_ids:
            self._halted.pop(name, None)
        return step

    def _places(self, name: str, tokens: int) -> int:
        """Number of tokens for which deep layers need places, once the first `tokens` of a request have run.

        While its prompt waits for the last chunk, they need one more than they hold: a replayed graph writes there.
        """
        counts = self._halted.get(name)
        return tokens if counts is None else held(tokens, *counts) + (tokens < counts[0])

    def _show_room(self, full: int, halted: int) -> None:
        """Log how many of the longest prompts fit at once. full, halted: number of groups of layers."""
        longest, size = self.vllm_config.model_config.max_model_len, self.vllm_config.cache_config.block_size
        kept = longest - Choice(self._policy).dropped(longest, self._shortest)
        blocks = self.kv_cache_manager.block_pool.num_gpu_blocks - 1  # vLLM leaves one unused
        log.info(
            "deltahalt: %.2f prompts of %d tokens fit at once where %d of these stay, and %.2f whole ones",
            blocks / (full * ceil(longest / size) + halted * ceil(kept / size)),
            longest,
            kept,
            blocks / ((full + halted) * ceil(longest / size)),
        )
