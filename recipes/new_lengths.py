"""Time prompts of lengths that the process has not met, as real prompts are, with cuDNN's attention and without.

usage: new_lengths.py ROWS.jsonl [--shape SHAPE] [--lengths N,...] [--policies "POLICY ..."] [--new-tokens N]
                      [--runs N]

PyTorch prefers cuDNN's attention from Hopper on, which plans for each length; `deltahalt bench` repeats its lengths,
and does not see that. Here each run's prompt is as long as none before it: N tokens, and a few hundred more. Random
weights; the full model and each policy run in turn, first as PyTorch prefers, then without cuDNN.
"""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch

from deltahalt.answering.generation import Generated, generate_timed
from deltahalt.engine.backends import WITHOUT_CUDNN
from deltahalt.flops import ModelShape
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, random_model
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.rows.base import RanRow, append_rows
from deltahalt.methods.applying import Applied, applying
from deltahalt.methods.registry import parse_method

LATE = "chunk=64,keep_first=256,keep_last=128,window=16,kernel=193,power=3,standardize=true"
POLICIES = f"dash max-sim:start=2,pruning_ratio=0.461,{LATE}"


@dataclass(frozen=True)
class NewLengthsRow(RanRow):
    """Prompts of about `prompt` tokens, each of a length of its own, and `new_tokens` after each.

    prefill: seconds until the first new token; token: of each later one; medians over `runs`.
    """

    kind: ClassVar[str] = "new-lengths"

    model: str
    policy: str
    prompt: int
    new_tokens: int
    runs: int
    prefill: float
    token: float


def measure(
    model: Any, name: str, policies: list[str], length: int, new_tokens: int, runs: int, lengths: Iterator[int]
) -> list[NewLengthsRow]:
    """Rows of the full model and of each policy, with cuDNN and without. lengths: how much longer each prompt is."""
    done: dict[tuple[str, bool], list[Generated]] = {}
    for _ in range(runs):
        for policy in (FULL, *policies):
            for cudnn in (True, False):
                with nullcontext() if cudnn else WITHOUT_CUDNN:
                    took = _run(model, policy, length + next(lengths), new_tokens)
                done.setdefault((policy, cudnn), []).append(took)
    rows = []
    for (policy, cudnn), taken in done.items():
        with nullcontext() if cudnn else WITHOUT_CUDNN:
            ran = ran_on(model)
        row = NewLengthsRow(
            model=name,
            policy=policy,
            prompt=length,
            new_tokens=new_tokens,
            runs=runs,
            prefill=median(one.prefill_seconds for one in taken),
            token=median(one.decode_seconds for one in taken) / (new_tokens - 1),
            **ran,
        )
        rows.append(row)
    return rows


def _run(model: Any, policy: str, length: int, new_tokens: int) -> Generated:
    way: AbstractContextManager[Applied | None]
    way = nullcontext() if policy == FULL else applying(model, parse_method(policy))
    prompts = random_prompts(model, length, 1, seed=length).read()
    with way as applied:
        return generate_timed(model, prompts, new_tokens, forced=True, applied=applied)


def main() -> None:
    """Measure each length and print its lines."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--shape", default="qwen2.5-7b")
    parser.add_argument("--lengths", default="1024,4096,8192,16384,32768")
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    if given.new_tokens < 2:
        parser.error("give two --new-tokens or more: the first is the prefill's, and those after it are timed")
    lengths = [int(length) for length in given.lengths.split(",")]
    on_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if on_gpu else (torch.float32, "cpu")
    model = random_model(ModelShape.parse(given.shape), dtype=dtype, device=device, longest=2 * max(lengths) + 4096)
    policies = given.policies.split()
    for policy in (FULL, *policies):  # warm up
        _run(model, policy, 999, 2)
    for length in lengths:
        # An answer's tokens lengthen K/V, so that prompts one token apart would meet lengths again.
        apart = count(step=given.new_tokens)
        for row in measure(model, given.shape, policies, length, given.new_tokens, given.runs, apart):
            append_rows(given.rows, [row])
            took = f"prefill {row.prefill:.3f} s, then {1000 * row.token:.1f} ms a token"
            print(f"{row.prompt} {row.attention} {row.policy}: {took}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
