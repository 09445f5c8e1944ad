"""A computation recorded as a CUDA graph, which the GPU then repeats in one launch."""

import threading
from collections.abc import Callable

import torch

_lock = threading.Lock()
_streams: dict[torch.device, torch.cuda.Stream] = {}  # one for each device: cuBLAS keeps memory for every stream


def record(compute: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Run `compute` once and record it; the function returned repeats it and gives its output.

    `compute` reads and writes tensors that stay at their place, and running it twice must do no harm. The output is
    overwritten by the next repetition.
    """
    with _lock, torch.cuda.device(device):
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        aside, here, graph = _streams[device], torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
        aside.wait_stream(here)
        try:
            with torch.cuda.stream(aside):
                compute()  # libraries allocate what they need on their first call, which a recording must not
                graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the GPU meanwhile
                try:
                    output = compute()
                finally:
                    graph.capture_end()
        finally:
            here.wait_stream(aside)

    def repeat() -> torch.Tensor:
        graph.replay()
        return output

    return repeat
