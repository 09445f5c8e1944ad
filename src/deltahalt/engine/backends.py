"""Which of PyTorch's attention backends a layer may use."""

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

# cuDNN compiles a plan for every new sequence length (40 to 65 ms on an H200, PyTorch 2.11). Break-even: with this many
# query-key pairs, summed over heads and layers, FlashAttention is slower than an already planned cuDNN by that much.
PAIRS_A_PLAN = 1.6e11
MASKED = 4  # with a mask another kernel runs instead of FlashAttention: its loss to cuDNN is four times as large


def backend(pairs: int, *, masked: bool) -> AbstractContextManager[object]:
    """The context for a run of layers that share one cuDNN plan.

    pairs: query-key pairs, summed over heads and layers. PyTorch prefers cuDNN on Hopper and newer GPUs. The full model
    needs one plan a call, and every run of layers that holds other tokens needs its own. Such a run goes without cuDNN
    where compiling the plan takes longer than the plan saves.
    """
    return nullcontext() if pairs * (MASKED if masked else 1) > PAIRS_A_PLAN else WITHOUT_CUDNN


class _WithoutCudnn:
    """Keeps scaled_dot_product_attention from cuDNN; the other backends stay available.

    PyTorch has one switch for the whole process: other threads run without cuDNN meanwhile, and the last thread to
    leave restores it.
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
