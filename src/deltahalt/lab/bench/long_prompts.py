"""Prompts so long that they run in pieces, beside the plain model, which may not fit into the memory of the GPU."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, RunContext, context_of, fitting
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.bench.row import medians
from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table
from deltahalt.methods.registry import AnyMethod

NO_FIT = "out of memory"


@dataclass(frozen=True)
class LongPromptRow(RanRow):
    """One prompt of `prompt` tokens, with `new_tokens` generated after it.

    piece_tokens: the number of prompt tokens in a piece; None for the plain model, which runs without any. prefill:
    seconds until the first new token. token: seconds of each later token. flops, kv_bytes, peak_bytes: as in Cost. All
    five are medians over `runs` runs, and None where the GPU's memory was too small.
    """

    kind: ClassVar[str] = "long-prompts"
    signed: ClassVar[frozenset[str]] = frozenset({"seed"})

    model: str
    policy: str
    prompt: int
    new_tokens: int
    piece_tokens: int | None
    runs: int
    seed: int
    prefill: float | None
    token: float | None
    flops: float | None
    kv_bytes: float | None
    peak_bytes: float | None


def measure_long_prompts(
    model: Any,
    name: str,
    policies: dict[str, AnyMethod],
    lengths: Sequence[int],
    *,
    piece_tokens: int,
    new_tokens: int,
    runs: int,
    seed: int,
    tokenizer: Any = None,
) -> Iterator[LongPromptRow]:
    """Yield, for each length, the row of the plain model and one of each policy in pieces, after a short warm-up."""
    contexts: dict[str, RunContext] = {FULL: nullcontext}
    for text, policy in policies.items():
        contexts[text] = context_of(model, policy, tokenizer, piece_tokens=piece_tokens)
    warm_up = random_prompts(model, min(*lengths, 2 * piece_tokens), 1, seed)
    for context in contexts.values():
        fitting(model, context, warm_up, min(new_tokens, 2))
    for length in lengths:
        prompts = random_prompts(model, length, 1, seed)
        for text, context in contexts.items():
            costs = [fitting(model, context, prompts, new_tokens)]
            while len(costs) < runs and costs[-1] is not None:
                costs.append(fitting(model, context, prompts, new_tokens))
            done = [cost for cost in costs if cost is not None]
            usual = medians(done) if len(done) == len(costs) else None
            yield LongPromptRow(
                model=name,
                policy=text,
                prompt=length,
                new_tokens=new_tokens,
                piece_tokens=None if text == FULL else piece_tokens,
                runs=len(costs),
                seed=seed,
                prefill=None if usual is None else usual.prefill,
                token=None if usual is None or usual.generation is None else usual.generation / (new_tokens - 1),
                flops=None if usual is None else usual.flops,
                kv_bytes=None if usual is None else usual.kv_bytes,
                peak_bytes=None if usual is None else usual.peak_bytes,
                **ran_on(model),
            )


def cells(rows: Sequence[LongPromptRow]) -> dict[str, list[str]]:
    """The columns of a table of the rows, by head."""
    return {
        "a piece": ["" if row.piece_tokens is None else f"{row.piece_tokens:,}" for row in rows],
        "prefill s": [NO_FIT if row.prefill is None else f"{row.prefill:.2f}" for row in rows],
        "ms a token": ["" if row.token is None else f"{1000 * row.token:.1f}" for row in rows],
        "peak GiB": [_gib(row.peak_bytes) for row in rows],
        "K/V GiB": [_gib(row.kv_bytes) for row in rows],
    }


def markdown(rows: Sequence[LongPromptRow]) -> str:
    """Return the rows as a Markdown table."""
    named = {"model": [row.model for row in rows], "prompt": [f"{row.prompt:,}" for row in rows]}
    named |= {"policy": [f"`{row.policy}`" for row in rows]}
    return table(named | cells(rows))


def _gib(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.1f}"
