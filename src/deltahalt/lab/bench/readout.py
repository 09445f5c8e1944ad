"""Documents per second of a model that reads texts and generates nothing, in batches of different lengths."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch

from deltahalt.clock import clock
from deltahalt.errors import InputError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.bench.measure import FULL, RunContext, context_of
from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import differing, table
from deltahalt.methods.applying import Applied
from deltahalt.methods.base import Ends, Prompts
from deltahalt.methods.registry import AnyMethod

BATCHES = 4  # that the documents of one measurement fill


@dataclass(frozen=True)
class ReadoutRow(RanRow):
    """`documents` texts of `shortest` to `longest` tokens, read in batches of `batch` for the last token's final state.

    by_length: whether batches hold documents of similar lengths; else the order is drawn. full, halted: documents per
    second of the host alone and under the policy, medians over `repeats` runs in turn. gain: median of halted / full
    over pairs of runs. bound: ratio of true FLOPs, full model to policy, padding not counted.
    """

    kind: ClassVar[str] = "readout"

    model: str
    policy: str
    shortest: int
    longest: int
    documents: int
    batch: int
    by_length: bool
    full: float
    halted: float
    gain: float
    bound: float
    repeats: int
    seed: int


@torch.inference_mode()
def last_states(
    model: Any, prompts: Prompts, applied: Applied | None = None, ends: Sequence[Ends | None] | None = None
) -> torch.Tensor:
    """Return the final states [B, D] of the last tokens of left-padded prompts (input_ids, attention_mask [B, T]).

    Layers store no K/V, unless deeper ones read those of halted tokens. applied: the method that the model runs under,
    which may shorten the prompts first; None for the host alone. ends: as in `Applied.shorten`.
    """
    use_cache = False
    if applied is not None:
        prompts = applied.shorten(prompts, ends)
        use_cache = any(stage.halted_states is not None for stage in applied.halted.stages)
    states: torch.Tensor = model.get_decoder()(**prompts, use_cache=use_cache).last_hidden_state[:, -1]
    return states


def measure_readout(
    model: Any,
    name: str,
    policies: Mapping[str, AnyMethod],
    longest: int,
    batch: int,
    *,
    tokenizer: Any = None,
    repeats: int = 5,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[list[ReadoutRow]]:
    """Measure the host alone and every policy in turn, `repeats` times after one warm-up, on the same documents.

    The lengths of the `BATCHES` x `batch` documents are spread evenly from half of `longest` tokens to all of it.
    Batches of more than one document are made once of documents of similar lengths, and once in a drawn order. Yields
    the rows of each. tick: called after each run, `readout_runs(...)` times.

    Raises InputError if the GPU's memory is too small.
    """
    contexts: dict[str, RunContext] = {FULL: nullcontext}
    contexts |= {text: context_of(model, policy, tokenizer) for text, policy in policies.items()}
    documents = _documents(model, longest, BATCHES * batch, seed)
    shape = ModelShape.of(model.get_decoder().config)
    full_flops = sum(true_flops(shape, dense_loads(shape.layers, len(ids)), len(ids)) for ids in documents)
    for by_length in (True, False) if batch > 1 else (True,):
        batches = _batches(documents, batch, by_length=by_length)
        seconds: dict[str, list[float]] = {text: [] for text in contexts}
        flops: dict[str, int] = {}
        for run in range(repeats + 1):
            for text, context in contexts.items():
                took, flops[text] = _run(model, context, batches)
                if run:
                    seconds[text].append(took)
                tick()
        per_second = {text: median(len(documents) / took for took in own) for text, own in seconds.items()}
        yield [
            ReadoutRow(
                model=name,
                policy=policy,
                shortest=min(map(len, documents)),
                longest=max(map(len, documents)),
                documents=len(documents),
                batch=batch,
                by_length=by_length,
                full=per_second[FULL],
                halted=per_second[policy],
                gain=median(full / own for full, own in zip(seconds[FULL], seconds[policy], strict=True)),
                bound=full_flops / flops[policy],
                repeats=repeats,
                seed=seed,
                **ran_on(model),
            )
            for policy in policies
        ]


def readout_runs(policies: int, batches: Sequence[int], repeats: int) -> int:
    """Return the number of runs that `measure_readout` makes for these batch sizes together."""
    return (policies + 1) * (repeats + 1) * sum(1 if batch == 1 else 2 for batch in batches)


def markdown(rows: Sequence[ReadoutRow]) -> str:
    """Return the rows as a Markdown table."""
    return table(
        {
            **differing({"model": [row.model for row in rows]}),
            "policy": [f"`{row.policy}`" for row in rows],
            **cells(rows),
            "machine": [f"{row.machine}, {row.dtype}" for row in rows],
        }
    )


def cells(rows: Sequence[ReadoutRow]) -> dict[str, list[str]]:
    """Return the columns of a table, by head."""
    return {
        "tokens": [f"{row.shortest:,} to {row.longest:,}" for row in rows],
        "batch": [f"{row.batch}" if row.batch == 1 else f"{row.batch}, {_order(row)}" for row in rows],
        "documents/s, full / halted": [f"{row.full:.3g} / {row.halted:.3g}" for row in rows],
        "gain": [f"{row.gain:.2f}x" for row in rows],
        "bound": [f"{row.bound:.2f}x" for row in rows],
        "share": [f"{row.gain / row.bound:.2f}" for row in rows],
    }


def _order(row: ReadoutRow) -> str:
    return "by length" if row.by_length else "drawn"


def _documents(model: Any, longest: int, count: int, seed: int) -> list[torch.Tensor]:
    """Return `count` documents of random tokens [T], in a drawn order."""
    shortest = -(-longest // 2)
    lengths = [shortest + (longest - shortest) * number // max(1, count - 1) for number in range(count)]
    random.Random(seed).shuffle(lengths)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_decoder().config.vocab_size
    return [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]


def _batches(documents: Sequence[torch.Tensor], batch: int, *, by_length: bool) -> list[Prompts]:
    order = sorted(documents, key=len, reverse=True) if by_length else list(documents)
    return [_padded(order[start : start + batch]) for start in range(0, len(order), batch)]


def _padded(documents: Sequence[torch.Tensor]) -> Prompts:
    """Return the documents as one batch, padded on the left."""
    width = max(map(len, documents))
    ids = torch.zeros(len(documents), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, width - len(document) :], mask[row, width - len(document) :] = document, 1
    return {"input_ids": ids, "attention_mask": mask}


def _run(model: Any, context: RunContext, batches: Sequence[Prompts]) -> tuple[float, int]:
    """Return the seconds of one run over all batches, and its true FLOPs; 0 for the host alone."""
    flops = 0
    try:
        with context() as applied:
            begin = clock()
            for prompts in batches:
                last_states(model, {name: rows.to(model.device) for name, rows in prompts.items()}, applied)
                flops += 0 if applied is None else applied.flops
            return clock() - begin, flops
    except torch.OutOfMemoryError as error:
        size = list(batches[0]["input_ids"].shape)
        raise InputError(
            f"a batch of {size[0]} documents of up to {size[1]:,} tokens does not fit into the GPU's memory: measure "
            "fewer at once, or shorter ones"
        ) from error
