"""vLLM's schedulers where prompts halt: requests share only K/V blocks of tokens that never halt.

A block is found by a hash of all tokens up to its end. In deep layers, K/V of a halted prompt are in other places than
those of its tokens in shallow layers, so its blocks have no hashes, except those of its prefix.
"""

from typing import Any

from deltahalt.errors import DeltahaltError
from deltahalt.integrations.vllm.choosing import Choosing
from deltahalt.integrations.vllm.options import request_choice
from deltahalt.policies.base import Policy


class Sharing(Choosing):
    """The part that both schedulers have in common."""

    kv_cache_manager: Any
    hash_block_size: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        coordinator = self.kv_cache_manager.coordinator
        cache_blocks = coordinator.cache_blocks

        def cache_hashed_blocks(request: Any, num_computed_tokens: int) -> None:
            hashed = len(request.block_hashes) * self.hash_block_size
            cache_blocks(request, min(num_computed_tokens, hashed))

        coordinator.cache_blocks = cache_hashed_blocks

    def add_request(self, request: Any) -> None:
        """Queue a request, with hashes of the blocks that it may share."""
        shared = self._shared(request)
        if shared is not None:
            del request.block_hashes[shared // self.hash_block_size :]
            request._block_hasher = None  # generated tokens follow halted ones
        super().add_request(request)  # type: ignore[misc]

    def _shared(self, request: Any) -> int | None:
        """Number of first tokens that a request may share; None for all, where no token halts."""
        try:
            choice = request_choice(Policy(), request.sampling_params)
        except DeltahaltError:
            return 0
        return choice.prefix if choice.may_halt(request.num_prompt_tokens, self._shortest) else None
