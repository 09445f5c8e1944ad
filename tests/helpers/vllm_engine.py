"""vLLM on tiny models, in this process, and what the core engine gives on a CPU for the same prompts.

VLLM_USE_V2_MODEL_RUNNER=1 makes vLLM run its model runner V2, whose Triton kernels run on a CPU by TRITON_INTERPRET=1.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import deltahalt
from helpers.tiny import prompts, tiny

V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_DO_NOT_TRACK="1",
)
if V2 and not torch.cuda.is_available():  # Triton counts as usable where one of its backends has an active driver
    backends = pytest.importorskip("triton.backends", reason="runner V2 needs Triton: make vllm-env").backends
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

NEW = 12  # tokens that each prompt gets
LENGTHS = (150, 40, 220, 90, 231, 64)  # more than fit into one step of `SETTINGS`, so prompts join others' decoding
HALF = "start=1,pruning_ratio=0.6,keep_first=8,keep_last=16"
SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": False,
    "max_model_len": 256,
    "max_num_batched_tokens": 256,
    "max_num_seqs": 8,
    "block_size": 32,
    "num_gpu_blocks_override": 128,
}
if torch.cuda.is_available():
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # else kernels round float32 to tf32
    # else vLLM takes and measures most of what is free, which an engine that is not gone yet changes
    SETTINGS.update(kv_cache_memory_bytes=2**30, gpu_memory_utilization=0.1)
CHUNKS: dict[str, Any] = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}  # in place of those above


def saved(folder: Path, variant: str = "llama", **options: Any) -> Any:
    """A tiny model of four layers, saved in `folder`, with heads of a size that vLLM's CPU kernels know."""
    model = tiny(variant, **{"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 4} | options)
    model.save_pretrained(folder)
    return model


def token_ids(*lengths: int) -> list[list[int]]:
    """For each length, the ids of a prompt of its own."""
    return [prompts(length, seed=number)[0][0].tolist() for number, length in enumerate(lengths)]


def config(policy: str, **options: Any) -> dict[str, Any]:
    """vLLM's additional_config for this policy."""
    return {"deltahalt": {"policy": policy, **options}}


@contextmanager
def engine(folder: Path, policy: str | None = None, *, shortest: int = 0, **settings: Any) -> Iterator[Any]:
    """A vLLM engine, closed at the end. policy: None for an engine whose configuration does not name deltahalt."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    if policy is not None:
        settings["additional_config"] = config(policy, min_prompt_tokens=shortest)
    gc.freeze()  # vLLM collects garbage many times, which takes seconds among all that is imported
    llm = LLM(str(folder), **SETTINGS | settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def sampling(**options: Any) -> Any:
    """Greedy sampling of `NEW` tokens."""
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0, "max_tokens": NEW, "ignore_eos": True, "detokenize": False} | options)


def outputs(llm: Any, ids: Sequence[list[int]], options: Sequence[str | None] | None = None) -> list[Any]:
    """vLLM's outputs for prompts sent at once. options: each request's entry `deltahalt`."""
    given = [None] * len(ids) if options is None else options
    params = [sampling(extra_args=None if text is None else {"deltahalt": text}) for text in given]
    return llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params, use_tqdm=False)


def tokens(done: Sequence[Any]) -> list[list[int]]:
    """The generated tokens in vLLM's outputs."""
    return [list(output.outputs[0].token_ids) for output in done]


def served(llm: Any, ids: Sequence[list[int]], *, options: Sequence[str | None] | None = None) -> list[list[int]]:
    """The tokens that vLLM gives to prompts sent at once. options: each request's entry `deltahalt`."""
    return tokens(outputs(llm, ids, options))


def expected(model: Any, ids: Sequence[list[int]], policy: str, *, prefix: int = 0, **options: Any) -> list[list[int]]:
    """The tokens that the core engine gives to each prompt alone. prefix: number of its tokens that never halt."""
    answers = []
    for prompt in ids:
        given, cache = torch.tensor([prompt]), DynamicCache(config=model.config)
        with torch.no_grad():
            if prefix:
                model(given[:, :prefix], past_key_values=cache, logits_to_keep=1)
            with deltahalt.halting(model, policy, **options):
                answer = model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    past_key_values=cache,
                    max_new_tokens=NEW,
                    do_sample=False,
                )
        answers.append(answer[0, len(prompt) :].tolist())
    return answers


def scheduler(llm: Any) -> Any:
    """vLLM's scheduler, which is in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def preemptions(llm: Any) -> list[tuple[int, int]]:
    """A list that gets, at each preemption, the number of computed tokens and that of generated ones."""
    found, preempt = [], scheduler(llm)._preempt_request

    def noted(request: Any, *rest: Any, **options: Any) -> Any:
        found.append((request.num_computed_tokens, request.num_output_tokens))
        return preempt(request, *rest, **options)

    scheduler(llm)._preempt_request = noted
    return found
