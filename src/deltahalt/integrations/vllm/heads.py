"""Queries and keys of the layer that decides. With tensor parallelism each GPU computes some attention heads."""

from typing import Any

import torch
from vllm.distributed import tensor_model_parallel_all_gather


class Heads:
    """How the attention heads of a layer are spread over GPUs.

    queries, keys: number of values that this GPU computes of the queries and of the keys of a token. scaling: factor on
    the product of a query and a key.
    """

    def __init__(self, attention: Any, config: Any) -> None:
        """attention: a layer's attention module. config: the engine's VllmConfig."""
        gpus, key_heads = config.parallel_config.tensor_parallel_size, config.model_config.get_total_num_kv_heads()
        self.queries: int = attention.q_size
        self.keys: int = attention.kv_size
        self.scaling: float = attention.scaling
        self._size: int = attention.head_dim
        self._copies = max(1, gpus // key_heads)  # of each key head, where there are more GPUs than key heads

    def every_query(self, own: torch.Tensor) -> torch.Tensor:
        """Queries [heads, n, d] of n tokens, from [n, own heads * d] that this GPU computed. All GPUs call it."""
        return self._every(own)

    def every_key(self, own: torch.Tensor) -> torch.Tensor:
        """Keys [kv_heads, n, d] of n tokens, from [n, own heads * d] that this GPU computed. All GPUs call it."""
        return self._every(own)[:: self._copies]

    def _every(self, own: torch.Tensor) -> torch.Tensor:
        every = tensor_model_parallel_all_gather(own.contiguous(), dim=-1)
        return every.unflatten(-1, (-1, self._size)).transpose(0, 1)
