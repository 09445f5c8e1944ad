"""What vLLM knows of the K/V of layers with blocks for all tokens, and of those with blocks for tokens that stay."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

KVCacheSpecRegistry.check_kv_cache_spec_registry({})  # vLLM registers its own only where nothing is registered yet


class HaltedBlocks(FullAttentionManager):
    """Blocks of a group of layers, for the tokens that stay.

    places: function of a request's id and its number of tokens. Returns the number of tokens for which these layers
    need places.
    """

    places: Callable[[str, int], int]

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args: Any, **options: Any) -> int:
        """Number of blocks that a request needs beside those that it has."""
        count: int = super().get_num_blocks_to_allocate(
            request_id, self.places(request_id, num_tokens), *args, **options
        )
        return count

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args: Any, **options: Any) -> list[Any]:
        """The blocks that a request gets beside those that it has."""
        blocks: list[Any] = super().allocate_new_blocks(
            request_id, self.places(request_id, num_tokens), *args, **options
        )
        return blocks


@dataclass(frozen=True, kw_only=True)
class FullSpec(FullAttentionSpec):
    """The K/V of a layer with blocks for all tokens."""

    merge = KVCacheSpec.merge  # of equal ones only, where FullAttentionSpec's takes those of HaltedSpec, too


@dataclass(frozen=True, kw_only=True)
class HaltedSpec(FullAttentionSpec):
    """The K/V of a layer with blocks for the tokens that stay. All its tokens may do so, so that it is as large."""

    merge = KVCacheSpec.merge


KVCacheSpecRegistry.register(FullSpec, FullAttentionManager)
KVCacheSpecRegistry.register(HaltedSpec, HaltedBlocks)


def set_spec(attention: Any, kind: type[FullAttentionSpec]) -> None:
    """Let an attention layer of vLLM have K/V of this kind."""
    own = attention.get_kv_cache_spec

    def get_kv_cache_spec(config: Any) -> FullAttentionSpec:
        spec = own(config)
        return kind(**{field.name: getattr(spec, field.name) for field in fields(spec) if field.init})

    attention.get_kv_cache_spec = get_kv_cache_spec
