"""Measure the host alone, the engine with nothing halted, and policies, in turn on the same prompts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from deltahalt.answering.documents import context_size
from deltahalt.answering.generation import generate_timed
from deltahalt.clock import clock
from deltahalt.errors import InputError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.prompts import Prompts
from deltahalt.lab.bench.row import BenchRow, Cost, median_gains, medians
from deltahalt.methods.applying import Applied, applying
from deltahalt.methods.halting import method_of
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies import Dense

FULL, NOTHING_HALTED = "full model", "nothing halted"
RunContext = Callable[[], AbstractContextManager[Applied | None]]  # makes the `with` block that a run happens in


def measure(
    model: Any,
    name: str,
    policies: Mapping[str, AnyMethod],
    prompts: Prompts,
    *,
    tokenizer: Any = None,
    new_tokens: int = 1,
    repeats: int = 5,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[list[BenchRow]]:
    """Measure all policies and the full model in turn, in `repeats` rounds after one warm-up.

    After each round, yields a row for each policy over all rounds so far. The last rows are the result; earlier ones
    are what remains of an interrupted measurement.

    Args:
        model: The host.
        name: The model's name in rows.
        policies: The methods to measure, by their texts in rows.
        prompts: The prompts of every run.
        tokenizer: The model's tokenizer, for methods that read text.
        new_tokens: Number of tokens to generate after each prompt.
        repeats: Number of measured rounds.
        seed: The seed that the prompts were drawn with, for the rows.
        tick: Called after each run, `runs(...)` times.

    Raises:
        InputError: If prompts and answers exceed the model's context or the GPU's memory.
    """
    require_room(model.config, name, prompts.length, new_tokens)
    contexts: dict[str, RunContext] = {FULL: nullcontext, NOTHING_HALTED: context_of(model, Dense())}
    contexts |= {text: context_of(model, policy, tokenizer) for text, policy in policies.items()}
    costs: dict[str, list[Cost]] = {text: [] for text in contexts}
    for run in range(repeats + 1):
        for text, context in contexts.items():
            # Run 0 is the warm-up. With nothing halted, only the prefill is measured.
            limit = 1 if text == NOTHING_HALTED else new_tokens if run else min(new_tokens, 2)
            cost = run_once(model, context, prompts, limit)
            if run:
                costs[text].append(cost)
            tick()
        if run:
            ran = {"new_tokens": new_tokens, "repeats": run, "seed": seed, **ran_on(model)}
            yield [_row(name, policy, prompts, costs, ran) for policy in policies]


def context_of(model: Any, method: AnyMethod, tokenizer: Any = None, **options: Any) -> RunContext:
    """The block of a method, with `options` of `applying`.

    A method that halts nothing has the kernels of a halting prefill, so that others can be compared with it.
    """
    fused = True if method_of(method).is_dense and model.device.type == "cuda" else None
    return partial(applying, model, method, tokenizer, fused_kernels=fused, **options)


def _row(name: str, policy: str, prompts: Prompts, costs: dict[str, list[Cost]], ran: dict[str, Any]) -> BenchRow:
    """Return the row of a policy. costs: the cost of each round, by policy."""
    full, halted = costs[FULL], costs[policy]
    gain = median_gains(full, halted)
    return BenchRow(
        model=name,
        policy=policy,
        prompt=prompts.length,
        batch=prompts.batch,
        full=medians(full),
        halted=medians(halted),
        gain=gain,
        overhead=median_gains(costs[NOTHING_HALTED], full).prefill - 1,
        share=gain.prefill / gain.flops,
        **ran,
    )


def require_room(config: Any, name: str, length: int, new_tokens: int) -> None:
    """Raise InputError if a prompt of `length` tokens and its answer exceed the model's context."""
    longest = context_size(config)
    if length + new_tokens > longest:
        raise InputError(
            f"{name} takes {longest} tokens, and a prompt has {length}, its answer {new_tokens}: measure shorter ones"
        )


def check_new_tokens(new_tokens: int) -> None:
    """Raise InputError if answers have one token only."""
    if new_tokens < 2:
        raise InputError(f"--new-tokens must be at least 2 (got {new_tokens}), since tokens after the first are timed")


def runs(policies: int, repeats: int) -> int:
    """Return the number of runs that `measure` makes."""
    return (policies + 2) * (repeats + 1)


def run_once(model: Any, context: RunContext, prompts: Prompts, new_tokens: int) -> Cost:
    """Run the prompts once in `context` and return the cost. Raises InputError if the GPU's memory is too small."""
    try:
        return cost_of(model, context, prompts, new_tokens)
    except torch.OutOfMemoryError as error:
        many = f"{prompts.batch} prompts of {prompts.length:,} tokens"
        raise InputError(f"{many} do not fit into the GPU's memory: measure fewer at once, or shorter ones") from error


def fitting(model: Any, context: RunContext, prompts: Any, new_tokens: int) -> Cost | None:
    """The cost of a run; None where the GPU's memory is too small for it."""
    try:
        return cost_of(model, context, prompts, new_tokens)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # outside of the handler, whose error holds the tensors of the run
    return None


def cost_of(model: Any, context: RunContext, prompts: Prompts, new_tokens: int) -> Cost:
    """As `run_once`. Raises torch.OutOfMemoryError if the GPU's memory is too small."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    with context() as applied:
        begin = clock()
        inputs = prompts.read()
        reading = clock() - begin if prompts.is_text else 0.0
        done = generate_timed(model, inputs, new_tokens, forced=True, applied=applied)
    generation = done.decode_seconds if new_tokens > 1 else None
    return Cost(
        first_token=reading + done.prefill_seconds if prompts.is_text else None,
        prefill=done.prefill_seconds,
        generation=generation,
        total=reading + done.prefill_seconds + (generation or 0.0),
        flops=_full_flops(model, prompts) if applied is None else applied.flops,
        kv_bytes=done.cache_bytes,
        peak_bytes=torch.cuda.max_memory_allocated(model.device) if on_gpu else None,
    )


def _full_flops(model: Any, prompts: Prompts) -> int:
    shape = ModelShape.of(model.get_decoder().config)
    return prompts.batch * true_flops(shape, dense_loads(shape.layers, prompts.length), prompts.length)
