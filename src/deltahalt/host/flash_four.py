"""FlashAttention 4, where it is installed: on Hopper GPUs as fast as cuDNN, and without a plan for every length."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

HOPPER = (9, 0)  # compute capability of the first GPUs on which it was measured
WIDEST = 128  # dimensions of a head
# Query-key pairs, summed over heads and rows, from which it is faster than FlashAttention 2 on an H200.
FEWEST_PAIRS = 2.5e8


@cache
def kernel() -> Callable[..., Any] | None:
    """The package's function of queries, keys and values [B, n, heads, d]; None without the package or such a GPU."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < HOPPER:
        return None
    try:
        package: Any = importlib.import_module("flash_attn.cute.interface")  # an extra
    except ImportError:
        return None
    function: Callable[..., Any] = package.flash_attn_func
    return function


def takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0) -> bool:
    """Whether FlashAttention 4 runs on queries [B, heads, q, d], keys and values [B, kv_heads, k, d], and pays."""
    batch, heads, queries, size = query.shape
    suits = query.dtype in (torch.bfloat16, torch.float16) and size <= WIDEST and size % 8 == 0
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    pays = batch * heads * queries * key.shape[2] >= FEWEST_PAIRS
    return suits and pays and not learns and not dropout and value.shape[-1] == size and kernel() is not None


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """What queries read from keys and values, shapes as in `takes`: [B, heads, q, d].

    The last q of the k keys are the queries' own, and each query reads keys up to its own.
    """
    function = kernel()
    assert function is not None  # `takes` was true
    parts = (part.transpose(1, 2) for part in (query, key, value))
    with torch.cuda.device_of(query):  # the package runs on the current device
        output = function(*parts, softmax_scale=scale, causal=True)
    return (output[0] if isinstance(output, tuple) else output).transpose(1, 2)
