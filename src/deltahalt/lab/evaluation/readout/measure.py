"""Embeddings and scores of texts under policies, each timed in turn with the full model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deltahalt.clock import clock
from deltahalt.errors import InputError
from deltahalt.flops import ModelShape, dense_loads, true_flops
from deltahalt.lab.bench.machine import number_format, ran_on
from deltahalt.lab.bench.readout import last_states
from deltahalt.lab.evaluation.once import canonical, measured_once
from deltahalt.lab.evaluation.readout.row import EmbedRow
from deltahalt.lab.evaluation.readout.texts import Text
from deltahalt.lab.rows.base import rows_so_far
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import applying
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies import Dense

FULL = "dense"
YES, NO = " yes", " no"


def measure_texts(
    loaded: LoadedModel,
    texts: Sequence[Text],
    methods: Mapping[str, AnyMethod],
    tokens: int,
    rows: Path | None = None,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[EmbedRow]:
    """Yield the rows of the full model and of every method, by its text in the rows, on every text.

    tokens: number of tokens that each text is cut to. rows: a JSONL file that rows are added to after they are yielded;
    what is in it is not measured again. tick: called after each text. Raises what `Text.ids` and `applying` raise.
    """
    known = [] if rows is None else rows_so_far(rows, EmbedRow)
    ours = (row for row in known if (row.model, row.dtype) == (loaded.name, number_format(loaded.model)))
    done = {(_key(row.sample, row.tokens), canonical(row.policy)): row for row in ours}
    every = {FULL: Dense()} | dict(methods)
    made = ((text, *text.ids(loaded, tokens)) for text in texts)
    measures = (
        (_key(text.digest, ids.shape[1]), partial(_measure_text, loaded, text, ids, after)) for text, ids, after in made
    )
    yield from measured_once(measures, every, done, rows, tick)


@torch.inference_mode()
def _measure_text(
    loaded: LoadedModel, text: Text, ids: torch.Tensor, after: int, methods: Mapping[str, AnyMethod]
) -> Iterator[EmbedRow]:
    """Yield the rows of methods, by their texts, on the ids [1, T] of a text, whose ending has `after` tokens."""
    model: Any = loaded.model
    shape, length = ModelShape.of(model.get_decoder().config), ids.shape[1]
    full = true_flops(shape, dense_loads(shape.layers, length), length)
    ends = (0, after) if text.query else None  # an ending without a query says nothing of what matters
    for name, method in methods.items():
        with applying(model, method, loaded.tokenizer) as applied:
            begin = clock()
            prompts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            state = last_states(model, prompts, applied, [ends])[0]
            seconds, flops = clock() - begin, applied.flops
        yield EmbedRow(
            sample=text.digest,
            document=text.document_digest,
            query=text.query,
            ending="" if text.query else text.ending,
            model=loaded.name,
            policy=name,
            tokens=length,
            vector=_score(loaded, state) if text.query else _unit(state),
            seconds=seconds,
            speedup=full / flops,
            **ran_on(model),
        )


def _unit(state: torch.Tensor) -> tuple[float, ...]:
    unit = torch.nn.functional.normalize(state.float(), dim=0)
    return tuple(float(f"{value:.4g}") for value in unit.tolist())


def _score(loaded: LoadedModel, state: torch.Tensor) -> tuple[float, ...]:
    """Return the logit of yes minus that of no. Raises InputError for a tokenizer in which they begin alike."""
    yes, no = (loaded.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (YES, NO))
    if yes == no:
        raise InputError(f"{YES!r} and {NO!r} begin with the same token in {loaded.name}: leave --queries out")
    logits = loaded.model.get_output_embeddings()(state).float()
    return (float(logits[yes] - logits[no]),)


def _key(sample: str, tokens: int) -> str:
    return f"{sample} {tokens}"
