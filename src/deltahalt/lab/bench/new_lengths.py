"""Prompts of lengths that the process has not seen before, as real prompts are, with cuDNN's attention and without it.

PyTorch prefers cuDNN's attention from Hopper on, and cuDNN compiles a plan for each new length. `measure` repeats its
lengths, so it does not see that cost.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from statistics import median
from typing import Any, ClassVar

from deltahalt.engine.backends import WITHOUT_CUDNN
from deltahalt.errors import InputError
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, Way, run_once
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.bench.row import Cost
from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table
from deltahalt.methods.applying import applying
from deltahalt.methods.registry import AnyMethod


@dataclass(frozen=True)
class NewLengthsRow(RanRow):
    """Prompts of about `prompt` tokens, each of a length of its own, and `new_tokens` after each.

    prefill: seconds until the first new token. token: seconds of each later one. Both are medians over `runs`.
    """

    kind: ClassVar[str] = "new-lengths"

    model: str
    policy: str
    prompt: int
    new_tokens: int
    runs: int
    prefill: float
    token: float


def spread(policies: int, runs: int, new_tokens: int) -> int:
    """By how many tokens the prompts of one length differ at most."""
    return 2 * (policies + 1) * runs * new_tokens


def check_lengths(lengths: Sequence[int], policies: int, runs: int, new_tokens: int) -> None:
    """Raise InputError where answers have no later token, or where two of `lengths` would share prompt lengths."""
    if new_tokens < 2:
        raise InputError(f"--new-tokens must be at least 2 (got {new_tokens}): tokens after the first are timed")
    apart = spread(policies, runs, new_tokens)
    for shorter, longer in pairwise(sorted(lengths)):
        if longer - shorter < apart:
            raise InputError(
                f"lengths {shorter} and {longer} share prompts of one length: each needs {apart} lengths of its own, "
                "so give lengths further apart, or fewer repeats"
            )


def measure_new_lengths(
    model: Any,
    name: str,
    policies: dict[str, AnyMethod],
    lengths: Sequence[int],
    *,
    tokenizer: Any = None,
    new_tokens: int,
    runs: int,
) -> Iterator[list[NewLengthsRow]]:
    """For each length the rows of the full model and of each policy by name, first with cuDNN and then without it.

    Raises InputError as `check_lengths` does, and where prompts do not fit into the GPU's memory.
    """
    check_lengths(lengths, len(policies), runs, new_tokens)
    ways: dict[str, Way] = {FULL: nullcontext}
    ways |= {text: partial(applying, model, policy, tokenizer) for text, policy in policies.items()}
    for way in ways.values():  # a warm-up, on a length that is not measured
        _run(model, way, max(1, min(lengths) // 2), 2)
    for length in lengths:
        # An answer's tokens lengthen K/V, so prompts are `new_tokens` apart.
        longer = count(length, step=new_tokens)
        costs: dict[tuple[str, bool], list[Cost]] = {}
        for _ in range(runs):
            for text, way in ways.items():
                for cudnn in (True, False):
                    with nullcontext() if cudnn else WITHOUT_CUDNN:
                        costs.setdefault((text, cudnn), []).append(_run(model, way, next(longer), new_tokens))
        yield [
            _row(model, name, text, length, new_tokens, found, cudnn=cudnn) for (text, cudnn), found in costs.items()
        ]


def _run(model: Any, way: Way, length: int, new_tokens: int) -> Cost:
    return run_once(model, way, random_prompts(model, length, 1, seed=length), new_tokens)


def _row(
    model: Any, name: str, policy: str, length: int, new_tokens: int, costs: Sequence[Cost], *, cudnn: bool
) -> NewLengthsRow:
    with nullcontext() if cudnn else WITHOUT_CUDNN:
        ran = ran_on(model)
    return NewLengthsRow(
        model=name,
        policy=policy,
        prompt=length,
        new_tokens=new_tokens,
        runs=len(costs),
        prefill=median(cost.prefill for cost in costs),
        token=median(cost.generation or 0.0 for cost in costs) / (new_tokens - 1),
        **ran,
    )


def markdown(rows: Sequence[NewLengthsRow]) -> str:
    """The rows as a Markdown table: with cuDNN as PyTorch prefers it, beside without it."""
    found: dict[tuple[str, int, str], list[NewLengthsRow]] = {}
    for row in rows:
        found.setdefault((row.model, row.prompt, row.policy), []).append(row)
    # Without cuDNN the attention has a longer name, save on a CPU, where the sort leaves the two as they are.
    pairs = [sorted(own, key=lambda row: len(row.attention)) for own in found.values()]
    return table(
        {
            "model": [model for model, _, _ in found],
            "prompt": [f"{prompt:,}" for _, prompt, _ in found],
            "policy": [f"`{policy}`" for _, _, policy in found],
            "prefill s, cuDNN first": [f"{own[0].prefill:.3f}" for own in pairs],
            "without": [f"{own[-1].prefill:.3f}" for own in pairs],
            "ms a token, cuDNN first": [f"{1000 * own[0].token:.1f}" for own in pairs],
            "without it": [f"{1000 * own[-1].token:.1f}" for own in pairs],
        }
    )
