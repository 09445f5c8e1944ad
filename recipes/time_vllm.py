"""Time prompts in vLLM, stock or with halting, on random weights of Qwen2.5-7B's shape.

usage: time_vllm.py OUT.jsonl WAY [GPUS [GIB]]

WAY: `stock`, or a policy, such as `dash`. Both are compiled and have CUDA graphs, as vLLM does by default; with the
suffix `/graphs` they are not compiled and have graphs of steps that only decode, and with `/eager` neither. GPUS: the
number of them, by tensor parallelism; 1 if it is left out. GIB: memory for K and V; with it only prompts of 16,384
tokens are served, and the row has the largest number of them that ran at once. Rows are added to OUT.jsonl. It needs
vLLM.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
import vllm

import deltahalt
from deltahalt.flops import ModelShape
from deltahalt.lab.bench.machine import machine_name
from deltahalt.lab.bench.serving import MODES, STOCK, ServingRow
from deltahalt.lab.rows.base import append_rows

SHAPE = "qwen2.5-7b"
SIZES = ModelShape.parse(SHAPE)
VOCABULARY = 152_064
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": SIZES.hidden,
    "intermediate_size": SIZES.intermediate,
    "num_hidden_layers": SIZES.layers,
    "num_attention_heads": SIZES.heads,
    "num_key_value_heads": SIZES.kv_heads,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "dtype": "bfloat16",
}
LENGTHS, DECODED, LONG = (4_096, 16_384, 65_536, 131_072), 16_384, 100_000
RUNS, NEW_TOKENS, REQUESTS = 3, 128, 24
ENOUGH = 36  # GiB: all requests fit at once
CAPTURED = [1, 2, 4, 8, 16, 24, 32]  # batches that occur here; vLLM's list of 51 takes longer to start
VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def settings(policy: str, mode: str, gpus: int, gibibytes: int) -> dict[str, Any]:
    """The engine's options, with this memory for K and V."""
    options: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "max_model_len": max(LENGTHS) + 2 * NEW_TOKENS,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
        "tensor_parallel_size": gpus,
        "disable_custom_all_reduce": True,
        "kv_cache_memory_bytes": gibibytes << 30,  # without it, vLLM searches for what is free
    }
    halting = {} if policy == "stock" else {"additional_config": {"deltahalt": {"policy": policy}}}
    engine = dict(MODES[mode])
    if mode != "eager":
        engine["compilation_config"] = {**engine.get("compilation_config", {}), "cudagraph_capture_sizes": CAPTURED}
    return options | engine | halting


class Server:
    """An engine in this process, which is given prompts of random tokens.

    seed: of the next prompt. at_once: the largest number of requests that ran at once.
    """

    def __init__(self, **given: Any) -> None:
        folder = Path(tempfile.mkdtemp())
        (folder / "config.json").write_text(json.dumps(CONFIG))
        self.engine = vllm.LLM(str(folder), **settings(**given)).llm_engine
        self.seed = self.at_once = 0

    def serve(self, lengths: list[int], new_tokens: int) -> list[list[float]]:
        """Serve prompts that come at once; returns when each token of each was there, in seconds."""
        params = vllm.SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        prompts: dict[str, list[int]] = {}
        for length in lengths:
            self.seed += 1
            draw = random.Random(self.seed)
            prompts[str(self.seed)] = draw.choices(range(VOCABULARY), k=length)
        times: dict[str, list[float]] = {name: [] for name in prompts}
        begin = time.perf_counter()
        for name, ids in prompts.items():
            self.engine.add_request(name, {"prompt_token_ids": ids}, params)
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            self.at_once = max(self.at_once, len(self.engine.engine_core.engine_core.scheduler.running))
            for output in outputs:
                seen = times[output.request_id.split("-")[0]]
                seen += [time.perf_counter() - begin] * (len(output.outputs[0].token_ids) - len(seen))
        return list(times.values())


def measure(way: str, gpus: int, gibibytes: int | None, out: Path) -> None:
    """Add a row of each length; of one only where the memory is given."""
    policy, _, mode = way.partition("/")
    mode = mode or "default"
    server = Server(policy=policy, mode=mode, gpus=gpus, gibibytes=gibibytes or ENOUGH)
    server.serve([min(LENGTHS), min(LENGTHS) - 3], 8)  # kernels are compiled at their first use
    rows = []
    for length in LENGTHS if gibibytes is None else (DECODED,):
        runs = 1 if length > LONG else RUNS
        firsts = [server.serve([length - 17 * run], 1)[0][0] for run in range(runs + 1)]
        token = per_second = None
        if length == DECODED:
            (times,) = server.serve([length - 100], NEW_TOKENS)
            token = statistics.median(after - before for before, after in pairwise(times))
            every = server.serve([length - 7 * number for number in range(REQUESTS)], NEW_TOKENS)
            per_second = REQUESTS / max(times[-1] for times in every)
        rows.append(
            ServingRow(
                model=f"random {SHAPE}",
                policy=STOCK if policy == "stock" else policy,
                mode=mode,
                vllm=vllm.__version__,
                gpus=gpus,
                prompt=length,
                runs=runs,
                first_token=statistics.median(firsts[1:]),
                new_tokens=None if token is None else NEW_TOKENS,
                token=token,
                requests=None if token is None else REQUESTS,
                per_second=per_second,
                gibibytes=gibibytes,
                at_once=None if gibibytes is None else server.at_once,
                dtype=str(CONFIG["dtype"]),
                attention="vLLM",
                machine=machine_name(torch.device("cuda")),
                deltahalt=deltahalt.__version__,
                transformers=transformers.__version__,
                torch=torch.__version__,
            )
        )
    append_rows(out, rows)


if __name__ == "__main__":
    os.environ |= VARIABLES
    file, chosen, *numbers = sys.argv[1:]
    number, memory, *_ = [*map(int, numbers), None, None]
    measure(chosen, number or 1, memory, Path(file))
    os._exit(0)  # taking the engine down takes seconds
