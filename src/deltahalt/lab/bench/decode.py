"""Time of a generated token: the plain model, and policies with CUDA graphs and without."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from deltahalt.errors import UnsupportedError
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, NOTHING_HALTED, RunContext, check_new_tokens, context_of, run_once
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.bench.row import Cost, medians
from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies import Dense

PLAIN, OFF, ON = "plain model", "off", "on"
Way = tuple[str, str]  # the policy's text, and its graphs


@dataclass(frozen=True)
class DecodeRow(RanRow):
    """`new_tokens` tokens generated after each of `batch` prompts of `prompt` tokens, which run together.

    graphs: whether generated tokens run as CUDA graphs, "on" or "off"; "plain model" for the host alone. token: seconds
    of one token of all prompts, those after the first one; recording the graph is part of it. gain: the plain model's
    seconds divided by these, the median over pairs of runs in turn. kv_bytes: K and V after the prefill. peak_bytes: as
    in Cost. All are medians over `runs` runs.
    """

    kind: ClassVar[str] = "decode"
    signed: ClassVar[frozenset[str]] = frozenset({"seed"})

    model: str
    policy: str
    graphs: str
    prompt: int
    batch: int
    new_tokens: int
    runs: int
    seed: int
    token: float
    gain: float
    kv_bytes: float
    peak_bytes: float | None


def decode_ways(model: Any, policies: Mapping[str, AnyMethod], tokenizer: Any = None) -> dict[Way, RunContext]:
    """Return the plain model, the engine with nothing halted, and each policy, as contexts to measure.

    Both of the latter run with graphs and without, where graphs are possible. Raises what the methods raise.
    """
    ways: dict[Way, RunContext] = {(FULL, PLAIN): nullcontext}
    for text, method in {NOTHING_HALTED: Dense(), **policies}.items():
        off = context_of(model, method, tokenizer, decode_graphs=False)
        on = context_of(model, method, tokenizer, decode_graphs=True)
        ways |= {(text, OFF): off, (text, ON): on} if _opens(on) else {(text, OFF): off}
    return ways


def _opens(context: RunContext) -> bool:
    try:
        with context():
            return True
    except UnsupportedError:
        return False


def measure_decode(
    model: Any,
    name: str,
    ways: Mapping[Way, RunContext],
    length: int,
    batch: int,
    *,
    new_tokens: int,
    runs: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> list[DecodeRow]:
    """Measure all ways in turn, in `runs` rounds after one warm-up, and return a row for each.

    The warm-up generates as many tokens as a run does, so that every length has its plan of cuDNN's attention. Raises
    InputError for answers of one token, and if the GPU's memory is too small.
    """
    check_new_tokens(new_tokens)
    prompts = random_prompts(model, length, batch, seed)
    costs: dict[Way, list[Cost]] = {way: [] for way in ways}
    for run in range(runs + 1):
        for way, context in ways.items():
            cost = run_once(model, context, prompts, new_tokens)
            if run:
                costs[way].append(cost)
            tick()
    seconds = {way: [cost.generation or 0.0 for cost in own] for way, own in costs.items()}
    rows = []
    for (policy, graphs), own in costs.items():
        usual, pairs = medians(own), zip(seconds[FULL, PLAIN], seconds[policy, graphs], strict=True)
        rows.append(
            DecodeRow(
                model=name,
                policy=policy,
                graphs=graphs,
                prompt=length,
                batch=batch,
                new_tokens=new_tokens,
                runs=runs,
                seed=seed,
                token=median(seconds[policy, graphs]) / (new_tokens - 1),
                gain=median(full / halted for full, halted in pairs),
                kv_bytes=usual.kv_bytes,
                peak_bytes=usual.peak_bytes,
                **ran_on(model),
            )
        )
    return rows


def decode_runs(ways: int, runs: int) -> int:
    """Return the number of runs that `measure_decode` makes."""
    return ways * (runs + 1)


def cells(rows: list[DecodeRow]) -> dict[str, list[str]]:
    """The columns of a table of the rows, by head, without columns that are empty in every row."""
    columns = {
        "graphs": [row.graphs for row in rows],
        "ms a token": [f"{1000 * row.token:.1f}" for row in rows],
        "tokens/s": [f"{row.batch / row.token:,.0f}" for row in rows],
        "gain": [f"{row.gain:.2f}x" for row in rows],
        "K/V GB": [f"{row.kv_bytes / 1e9:.2f}" for row in rows],
        "peak GB": ["" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.1f}" for row in rows],
    }
    return {head: column for head, column in columns.items() if any(column)}


def markdown(rows: list[DecodeRow]) -> str:
    """Return the rows as a Markdown table; 1.50x means that the plain model takes 1.5 times as long for a token."""
    named = {"model": [row.model for row in rows], "prompt": [f"{row.batch} x {row.prompt:,}" for row in rows]}
    named |= {"policy": [f"`{row.policy}`" for row in rows]}
    return table(named | cells(rows) | {"machine": [f"{row.machine}, {row.dtype}" for row in rows]})
