"""Which of PyTorch's attention backends a call may use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Keep scaled_dot_product_attention from cuDNN, which PyTorch prefers from Hopper on; the other backends stay.

    cuDNN plans anew for each length of K/V that it has not met, which takes many times as long as the attention of one
    token. The full model plans once a token, for all layers; layers that hold different tokens plan once each.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
