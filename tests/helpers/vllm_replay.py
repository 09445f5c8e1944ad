"""A stand-in for vLLM's CUDA graphs on a CPU: a replay runs the captured forward pass with the captured tensors."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch


def runner(llm: Any) -> Any:
    """vLLM's model runner, which is in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def replayed(llm: Any, *, sizes: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let vLLM's runner V2 replay steps that only decode, in these numbers of requests. Returns what it replays."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager

    own = runner(llm)
    halting, replays = own.model.halting, []

    def capture(self: Any, create: Any, *_: Any) -> None:
        for desc in self._capture_descs[CUDAGraphMode.FULL]:
            forward = create(desc, warmup=False)
            forward(CUDAGraphMode.NONE)
            self.graphs[desc] = forward, halting.slots
        self._graphs_captured = True

    def replay(self: Any, desc: Any) -> None:
        replays.append(desc)
        forward, slots = self.graphs[desc]
        halting.plan, halting.slots = None, slots  # a replay runs no Python, so what it read then stays
        forward(CUDAGraphMode.NONE)

    monkeypatch.setattr(type(current_platform), "get_global_graph_pool", lambda *_: None)
    monkeypatch.setattr(CudaGraphManager, "capture", capture)
    monkeypatch.setattr(CudaGraphManager, "run_fullgraph", replay)
    own.compilation_config.cudagraph_capture_sizes = list(sizes)
    own.compilation_config.max_cudagraph_capture_size = max(sizes)
    _keep_schedules(monkeypatch)
    manager = ModelCudaGraphManager(own.vllm_config, own.device, CUDAGraphMode.FULL_DECODE_ONLY, 1)
    with torch.inference_mode():
        manager.capture(
            own.model,
            own.model_state,
            own.input_buffers,
            None,
            own.block_tables,
            own.attn_groups,
            own.kv_cache_config,
        )
    own.cudagraph_manager = manager
    return replays


def _keep_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the kernel's schedule of each step into the metadata that were captured, as FlashAttention's builder does."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    own, captured = CPUAttentionMetadataBuilder.build, {}

    def build(self: Any, common_prefix_len: int, common_attn_metadata: Any, **options: Any) -> Any:
        metadata = own(self, common_prefix_len, common_attn_metadata, **options)
        if common_attn_metadata.max_query_len == 1:
            first = captured.setdefault((self, common_attn_metadata.num_reqs), metadata)
            first.scheduler_metadata = metadata.scheduler_metadata
        return metadata

    monkeypatch.setattr(CPUAttentionMetadataBuilder, "build", build)
