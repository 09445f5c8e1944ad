"""Wall time that counts work a GPU has yet to finish."""

import time

import torch


def clock() -> float:
    """Seconds on a clock that only runs forward, read once the current CUDA device has caught up."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
