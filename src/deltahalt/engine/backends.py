"""Which attention kernel a layer may use."""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from deltahalt.host import flash_four

# cuDNN compiles a plan for every new sequence length (40 to 65 ms on an H200, PyTorch 2.11). Break-even: with this many
# query-key pairs, summed over heads and layers, FlashAttention is slower than an already planned cuDNN by that much.
PAIRS_A_PLAN = 1.6e11
MASKED = 4  # with a mask another kernel runs instead of FlashAttention: its loss to cuDNN is four times as large


def backend(pairs: int, *, masked: bool) -> AbstractContextManager[object]:
    """The context for a run of layers that share one cuDNN plan.

    pairs: query-key pairs, summed over heads and layers. PyTorch prefers cuDNN on Hopper and newer GPUs. The full model
    needs one plan a call, and every run of layers that holds other tokens needs its own. Such a run goes without cuDNN
    where compiling the plan takes longer than the plan saves. Without a mask, FlashAttention 4 runs where it is
    installed: it is as fast and has no plans.
    """
    if not masked and flash_four.kernel() is not None:
        return PLANLESS
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


class Planless(TorchFunctionMode):
    """Runs `scaled_dot_product_attention` on FlashAttention 4 in a `with` block, in this thread.

    Only calls that are causal, without a mask and large enough to gain run there; the others run without cuDNN.
    """

    def __enter__(self) -> "Planless":
        WITHOUT_CUDNN.__enter__()
        enter: Any = super().__enter__  # not typed in every version of torch
        enter()
        return self

    def __exit__(self, *error: object) -> None:
        leave: Any = super().__exit__
        leave(*error)
        WITHOUT_CUDNN.__exit__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options: dict[str, Any] = kwargs or {}
        if (
            func is F.scaled_dot_product_attention
            and options.get("attn_mask") is None
            and options.get("is_causal")
            and len(args) == 3
        ):
            query, key, value = args
            same = query.shape[2] == key.shape[2]  # of others, torch aligns the mask to the upper left
            if same and flash_four.takes(query, key, value, options.get("dropout_p", 0.0)):
                return flash_four.attend(query, key, value, options.get("scale"))
        return func(*args, **options)


PLANLESS = Planless()
