"""The plain host, the engine with nothing halted, and policies: run in turn on the same prompts."""

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
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies import Dense

FULL, NOTHING_HALTED = "full model", "nothing halted"
Way = Callable[[], AbstractContextManager[Applied | None]]


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
    """Measure all policies `repeats` times in turn with the full model, after one warm-up.

    Yields a row for each policy by name after each of these rounds, of all rounds so far: the last ones are the result,
    and those before are what is left of an interrupted measurement.

    tokenizer: the model's, for methods that read text. seed: what the prompts were drawn with. tick: called after each
    run, `runs(...)` times. Raises InputError where prompts and answers are longer than the model takes, or do not fit
    into the GPU's memory.
    """
    require_room(model.config, name, prompts.length, new_tokens)
    ways: dict[str, Way] = {FULL: nullcontext, NOTHING_HALTED: partial(applying, model, Dense())}
    ways |= {text: partial(applying, model, policy, tokenizer) for text, policy in policies.items()}
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for run in range(repeats + 1):
        for way, context in ways.items():
            # The first run is the warm-up; with nothing halted, only the prefill is asked about.
            limit = 1 if way == NOTHING_HALTED else new_tokens if run else min(new_tokens, 2)
            cost = run_once(model, context, prompts, limit)
            if run:
                costs[way].append(cost)
            tick()
        if run:
            ran = {"new_tokens": new_tokens, "repeats": run, "seed": seed, **ran_on(model)}
            yield [_row(name, policy, prompts, costs, ran) for policy in policies]


def _row(name: str, policy: str, prompts: Prompts, costs: dict[str, list[Cost]], ran: dict[str, Any]) -> BenchRow:
    """The row of a policy. costs: of each round, by way."""
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
    """Raise InputError where prompts of `length` tokens and their answers are longer than the model takes."""
    longest = context_size(config)
    if length + new_tokens > longest:
        raise InputError(f"{name} takes {longest} tokens, prompt and {new_tokens} new ones: measure shorter prompts")


def runs(policies: int, repeats: int) -> int:
    """How many runs `measure` makes."""
    return (policies + 2) * (repeats + 1)


def run_once(model: Any, context: Way, prompts: Prompts, new_tokens: int) -> Cost:
    """What one run costs. Raises InputError where it does not fit into the GPU's memory."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    try:
        with context() as applied:
            begin = clock()
            inputs = prompts.read()
            reading = clock() - begin if prompts.is_text else 0.0
            done = generate_timed(model, inputs, new_tokens, forced=True, applied=applied)
    except torch.OutOfMemoryError as error:
        many = f"{prompts.batch} prompts of {prompts.length:,} tokens"
        raise InputError(f"{many} do not fit into the GPU's memory: measure fewer at once, or shorter ones") from error
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
