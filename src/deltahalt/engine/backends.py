"""Which of PyTorch's attention backends a layer may use."""

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

# cuDNN plans anew for each length that it has not met: 40 to 65 ms on an H200, with PyTorch 2.11. As long as that takes
# FlashAttention more than a planned cuDNN, on so many pairs of query and key over heads and layers.
PAIRS_A_PLAN = 1.6e11
MASKED = 4  # with a mask FlashAttention cannot run, and what does is four times as far behind


def backend(pairs: int, *, masked: bool) -> AbstractContextManager[object]:
    """The context for layers that one plan of cuDNN's would serve, on `pairs` of query and key over heads and layers.

    PyTorch prefers cuDNN from Hopper on. The full model plans once a call, for all layers; layers that hold different
    tokens plan once each, so they go without cuDNN where a plan takes longer than it saves.
    """
    return nullcontext() if pairs * (MASKED if masked else 1) > PAIRS_A_PLAN else WITHOUT_CUDNN


class _WithoutCudnn:
    """Keeps scaled_dot_product_attention from cuDNN; the other backends stay.

    PyTorch's switch is the process's: other threads go without meanwhile, and the last of them to leave turns it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.cuda.enable_cudnn_sdp(self._before)


WITHOUT_CUDNN = _WithoutCudnn()
