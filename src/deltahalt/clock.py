"""Wall-clock time that includes all work that was sent to a GPU."""

import time

import torch


def clock() -> float:
    """Return the seconds of a monotonic clock, after the current CUDA device has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
