"""Where the time of a prefill goes: matrix products, attention, all other kernels, and waiting."""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from torch.profiler import ProfilerActivity, profile

from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, RunContext, context_of, fitting, run_once
from deltahalt.lab.bench.prompts import Prompts, random_prompts
from deltahalt.lab.bench.row import Cost
from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table
from deltahalt.methods.registry import AnyMethod

# Words in the names of kernels on a GPU and of operations on a CPU. Attention comes first: its kernels are of cutlass.
ATTENTION = re.compile("flash|fmha|sdpa|scaled_dot_product|attention", re.IGNORECASE)
WARM_UP = 131_072  # tokens: a longer prompt takes minutes, and is warmed up by one of this length
MATRIX = re.compile(r"gemm|nvjet|cutlass|xmma|cublas|\b(?:add|b|badd)?mm\b", re.IGNORECASE)


@dataclass(frozen=True)
class ProfileRow(RanRow):
    """The prefill of one prompt of `prompt` random tokens.

    prefill: seconds until the first new token, the median over `runs` runs. matrix, attention_kernels, other: seconds
    in which the device ran matrix products, attention and all other kernels, in one more run under PyTorch's profiler.
    waiting: the rest of `prefill`. flops: true FLOPs.
    """

    kind: ClassVar[str] = "profile"
    signed: ClassVar[frozenset[str]] = frozenset({"seed", "waiting"})

    model: str
    policy: str
    prompt: int
    runs: int
    seed: int
    prefill: float
    matrix: float
    attention_kernels: float
    other: float
    waiting: float
    flops: float


def measure_profiles(
    model: Any,
    name: str,
    policies: Mapping[str, AnyMethod],
    length: int,
    *,
    tokenizer: Any = None,
    runs: int,
    seed: int,
) -> list[ProfileRow]:
    """Profile the full model and each policy; no row of those that do not fit into the GPU's memory."""
    contexts: dict[str, RunContext] = {FULL: nullcontext}
    contexts |= {text: context_of(model, policy, tokenizer) for text, policy in policies.items()}
    prompts, rows = random_prompts(model, length, 1, seed), []
    warm_up = random_prompts(model, min(length, WARM_UP), 1, seed)
    for text, context in contexts.items():
        run_once(model, context, warm_up, 1)
        costs = [fitting(model, context, prompts, 1) for _ in range(runs)]
        done = [cost for cost in costs if cost is not None]
        if len(done) == runs:
            rows.append(_row(model, name, text, prompts, done, profiled(model, context, prompts), seed=seed))
    return rows


def profiled(model: Any, context: RunContext, prompts: Prompts) -> dict[str, float]:
    """Run once and return the seconds that the device spent in each kernel, or the CPU in each operation, by name."""
    on_gpu = model.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        run_once(model, context, prompts, 1)
    events: list[Any] = list(found.key_averages())
    if on_gpu:
        kernels = (event for event in events if event.device_type.name == "CUDA")
        return {event.key: event.self_device_time_total / 1e6 for event in kernels}
    return {event.key: event.self_cpu_time_total / 1e6 for event in events}


def _row(
    model: Any, name: str, policy: str, prompts: Prompts, costs: Sequence[Cost], kernels: dict[str, float], seed: int
) -> ProfileRow:
    attention = sum(seconds for kernel, seconds in kernels.items() if ATTENTION.search(kernel))
    others = {kernel: seconds for kernel, seconds in kernels.items() if not ATTENTION.search(kernel)}
    matrix = sum(seconds for kernel, seconds in others.items() if MATRIX.search(kernel))
    prefill = median(cost.prefill for cost in costs)
    return ProfileRow(
        model=name,
        policy=policy,
        prompt=prompts.length,
        runs=len(costs),
        seed=seed,
        prefill=prefill,
        matrix=matrix,
        attention_kernels=attention,
        other=sum(others.values()) - matrix,
        waiting=prefill - attention - sum(others.values()),
        flops=costs[0].flops,
        **ran_on(model),
    )


def cells(rows: Sequence[ProfileRow]) -> dict[str, list[str]]:
    """The columns of a table of the rows, by head; times in milliseconds."""
    figures = {
        "prefill ms": [row.prefill for row in rows],
        "matrix products": [row.matrix for row in rows],
        "attention": [row.attention_kernels for row in rows],
        "other kernels": [row.other for row in rows],
        "waiting": [row.waiting for row in rows],
    }
    rates = [row.flops / row.prefill / 1e12 for row in rows]
    columns = {head: [f"{1000 * seconds:,.0f}" for seconds in own] for head, own in figures.items()}
    return columns | {"TFLOP/s": [f"{rate:.0f}" for rate in rates]}


def markdown(rows: Sequence[ProfileRow]) -> str:
    """Return the rows as a Markdown table."""
    named = {"model": [row.model for row in rows], "prompt": [f"{row.prompt:,}" for row in rows]}
    return table(named | {"policy": [f"`{row.policy}`" for row in rows]} | cells(rows))
