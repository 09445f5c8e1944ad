"""Time prompts on one GPU, and on two of one host by device_map and by tensor parallelism.

usage: two_gpus.py save MODEL
       two_gpus.py one MODEL OUT.jsonl
       two_gpus.py device-map MODEL OUT.jsonl
       torchrun --nproc-per-node 2 two_gpus.py tensor-parallel MODEL OUT.jsonl

save: write random weights of Qwen2.5-7B's shape in bfloat16 to the folder MODEL. The others add rows to OUT.jsonl: the
plain model, and policies in pieces of 16,384 tokens.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from deltahalt.flops import ModelShape
from deltahalt.lab.bench.long_prompts import measure_long_prompts
from deltahalt.lab.bench.shape import random_model
from deltahalt.lab.rows.base import append_rows
from deltahalt.methods.registry import AnyMethod, parse_method

SHAPE = "qwen2.5-7b"
LENGTHS = (16_384, 131_072)
PIECE, NEW_TOKENS, RUNS = 16_384, 9, 2
POLICIES = ("both-ends:start=2,pruning_ratio=0.64,chunk=64", "dash")
PLACES: dict[str, dict[str, Any]] = {
    "one": {"device_map": "cuda"},
    "device-map": {"device_map": "balanced"},
    "tensor-parallel": {"tp_plan": "auto"},
}


def save(folder: Path) -> None:
    """Write random weights for prompts of all lengths."""
    longest = max(LENGTHS) + NEW_TOKENS
    model = random_model(ModelShape.parse(SHAPE), dtype=torch.bfloat16, device="cuda", longest=longest)
    model.save_pretrained(folder)


def measure(place: str, folder: Path, out: Path) -> None:
    """Add a row of each length and policy. Of several processes, the first one writes."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **PLACES[place]).eval()
    name = f"random {SHAPE}, {'one GPU' if place == 'one' else f'two GPUs, {place}'}"
    policies: dict[str, AnyMethod] = {text: parse_method(text) for text in POLICIES}
    options = {"piece_tokens": PIECE, "new_tokens": NEW_TOKENS, "runs": RUNS, "seed": 0}
    for row in measure_long_prompts(model, name, policies, LENGTHS, **options):
        if int(os.environ.get("RANK", "0")) == 0:
            append_rows(out, [row])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    if what == "save":
        save(Path(paths[0]))
    else:
        measure(what, Path(paths[0]), Path(paths[1]))
