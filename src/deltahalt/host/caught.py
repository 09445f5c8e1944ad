"""Calls of PyTorch's attention function by a host, caught and answered here."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from deltahalt.host.compat import version_error


class CaughtAttention(TorchFunctionMode):
    """Runs `attend` in place of `scaled_dot_product_attention` in a `with` block, in this thread.

    The host's function for "sdpa" must be called without a mask of its own (`attention_mask=None`, and is_causal=False
    where there are several queries). When the block ends, UnsupportedError is raised if the host has not called it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.called = True
        return self._answer(*args, **(kwargs or {}))

    def __exit__(self, error: Any, *rest: Any) -> None:
        leave: Any = super().__exit__  # not typed in every version of torch
        leave(error, *rest)
        if error is None and not self.called:
            raise version_error("the host's sdpa attention did not call scaled_dot_product_attention")

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
    ) -> torch.Tensor:
        """What queries [B, heads, q, d] read from keys and values [B, kv_heads, k, d]: [B, heads, q, d]."""
        raise NotImplementedError

    def _answer(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is not None or is_causal:
            raise version_error("the host's sdpa attention passed a mask, though it was given none")
        return self.attend(query, key, value, scale, dropout_p)
