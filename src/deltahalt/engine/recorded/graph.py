"""A computation recorded as a CUDA graph, which the GPU then repeats in one launch."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_generating: list[int] = []  # threads in a call of `generate`
_streams: dict[torch.device, torch.cuda.Stream] = {}  # one for each device: cuBLAS keeps memory for every stream


@contextmanager
def generating() -> Iterator[None]:
    """Note that this thread generates in the block. It first waits until no other thread records."""
    thread = threading.get_ident()
    with _lock:
        _generating.append(thread)
    try:
        yield
    finally:
        with _lock:
            _generating.remove(thread)


@contextmanager
def alone() -> Iterator[bool]:
    """Yields whether no other thread generates; none begins to in the block.

    While a graph is recorded, PyTorch raises an error in every other thread that draws random numbers on the GPU.
    """
    with _lock:
        yield not set(_generating).difference({threading.get_ident()})


def record(compute: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Run `compute` once and record it, in a block of `alone`; the function returned repeats it and gives its output.

    `compute` reads and writes tensors that stay at their place, and running it twice must do no harm. The output is
    overwritten by the next repetition.
    """
    with torch.cuda.device(device):
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
