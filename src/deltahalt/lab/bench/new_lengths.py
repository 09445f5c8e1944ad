"""Time of prompts whose lengths are new to the process, as with real prompts, with cuDNN's attention and without.

From Hopper GPUs on, PyTorch prefers cuDNN's attention, which compiles a plan for each new sequence length. `measure`
repeats the same lengths, so its times do not include that cost.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, pairwise
from statistics import median
from typing import Any, ClassVar

from deltahalt.engine.backends import WITHOUT_CUDNN
from deltahalt.errors import InputError
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, RunContext, check_new_tokens, context_of, run_once
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.lab.bench.row import Cost
from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table
from deltahalt.methods.registry import AnyMethod


@dataclass(frozen=True)
class NewLengthsRow(RanRow):
    """Prompts of about `prompt` tokens, all of different lengths, with `new_tokens` generated after each.

    prefill: seconds until the first new token. token: seconds of each later token. Both are medians over `runs` runs.
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
    """Return the largest difference, in tokens, between prompts that are measured for one length."""
    return 2 * (policies + 1) * runs * new_tokens


def check_lengths(lengths: Sequence[int], policies: int, runs: int, new_tokens: int) -> None:
    """Raise InputError if answers have one token only, or if two of `lengths` would have prompts of equal length."""
    check_new_tokens(new_tokens)
    apart = spread(policies, runs, new_tokens)
    for shorter, longer in pairwise(sorted(lengths)):
        if longer - shorter < apart:
            raise InputError(
                f"lengths {shorter} and {longer} are {longer - shorter} tokens apart, and prompt lengths would be "
                f"repeated: give lengths at least {apart} apart, or fewer repeats"
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
    """Yield, for each length, the rows of the full model and of each policy, each with cuDNN and then without it.

    Raises InputError as `check_lengths` does, and if the GPU's memory is too small for a prompt.
    """
    check_lengths(lengths, len(policies), runs, new_tokens)
    contexts: dict[str, RunContext] = {FULL: nullcontext}
    contexts |= {text: context_of(model, policy, tokenizer) for text, policy in policies.items()}
    for context in contexts.values():  # a warm-up, on a length that is not measured
        _run(model, context, max(1, min(lengths) // 2), 2)
    for length in lengths:
        # Each new token lengthens K/V, so the lengths of prompts differ by `new_tokens`.
        longer = count(length, step=new_tokens)
        costs: dict[tuple[str, bool], list[Cost]] = {}
        for _ in range(runs):
            for text, context in contexts.items():
                for cudnn in (True, False):
                    with nullcontext() if cudnn else WITHOUT_CUDNN:
                        costs.setdefault((text, cudnn), []).append(_run(model, context, next(longer), new_tokens))
        yield [
            _row(model, name, text, length, new_tokens, found, cudnn=cudnn) for (text, cudnn), found in costs.items()
        ]


def _run(model: Any, context: RunContext, length: int, new_tokens: int) -> Cost:
    return run_once(model, context, random_prompts(model, length, 1, seed=length), new_tokens)


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


def cells(rows: Sequence[NewLengthsRow]) -> dict[str, list[str]]:
    """The columns of a table of the rows of one length, by head."""
    return {
        "attention": [row.attention for row in rows],
        "prefill s": [f"{row.prefill:.3f}" for row in rows],
        "ms a token": [f"{1000 * row.token:.1f}" for row in rows],
    }


def markdown(rows: Sequence[NewLengthsRow]) -> str:
    """Return the rows as a Markdown table, with columns for PyTorch's order of attention kernels and without cuDNN."""
    found: dict[tuple[str, int, str], list[NewLengthsRow]] = {}
    for row in rows:
        found.setdefault((row.model, row.prompt, row.policy), []).append(row)
    # Without cuDNN, the attention has a longer name. On a CPU the names are equal, and the sort keeps the order.
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
