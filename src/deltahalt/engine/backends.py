"""Which of PyTorch's attention backends a call may use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Without:
    """How many calls go without cuDNN at once: the switch is the process's, and the last of them turns it back."""

    lock = threading.Lock()
    calls = 0
    before = True


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Keep scaled_dot_product_attention from cuDNN, which PyTorch prefers from Hopper on; the other backends stay.

    cuDNN plans anew for each length of K/V that it has not met, which takes many times as long as the attention of one
    token. The full model plans once a token, for all layers; layers that hold different tokens plan once each. Other
    threads go without it meanwhile, too.
    """
    with _Without.lock:
        if _Without.calls == 0:
            _Without.before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _Without.calls += 1
    try:
        yield
    finally:
        with _Without.lock:
            _Without.calls -= 1
            if _Without.calls == 0:
                torch.backends.cuda.enable_cudnn_sdp(_Without.before)
