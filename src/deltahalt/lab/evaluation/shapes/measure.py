"""Policies on prompts of shapes: real generation in the model's chat format, and NLL of the gold answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deltahalt.flops import ModelShape
from deltahalt.lab.bench.machine import number_format, ran_on
from deltahalt.lab.evaluation.once import canonical, measured_once
from deltahalt.lab.evaluation.prompt_sweep import PromptSweep
from deltahalt.lab.evaluation.samples import shaped_sample
from deltahalt.lab.evaluation.shapes.base import ShapedPrompt
from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.evaluation.sweep import (
    FULL,
    SweepSettings,
    digest,
    encode,
    greedy_answer,
    judge,
    prefill,
    reference_speedup,
)
from deltahalt.lab.rows.base import rows_so_far
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.applying import applying, speedup_bound
from deltahalt.methods.base import Method
from deltahalt.methods.halting import method_of
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies.base import Stage

SETTINGS = SweepSettings(max_answer_tokens=128)


def measure_prompts(
    loaded: LoadedModel,
    prompts: Iterable[ShapedPrompt],
    methods: Mapping[str, AnyMethod],
    rows: Path | None = None,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[ShapeRow]:
    """Yield the row of every method, by its text in the rows, on every prompt; the full model runs once a prompt.

    rows: a JSONL file that rows are added to after they are yielded; what is in it is not measured again, though under
    another text of the same method. tick: called after each prompt. Raises what `measure_prompt` raises.
    """
    known = [] if rows is None else rows_so_far(rows, ShapeRow)
    ours = (row for row in known if (row.model, row.dtype) == (loaded.name, number_format(loaded.model)))
    done = {(row.sample, canonical(row.policy)): row for row in ours}
    measures = ((digest(shaped_sample(prompt)), partial(measure_prompt, loaded, prompt)) for prompt in prompts)
    yield from measured_once(measures, methods, done, rows, tick)


@torch.inference_mode()
def measure_prompt(loaded: LoadedModel, prompt: ShapedPrompt, methods: Mapping[str, AnyMethod]) -> Iterator[ShapeRow]:
    """The rows of methods, by their texts, on one prompt. The shallow layers run once for all policies.

    Raises InputError for a prompt that is longer than the model takes, and what `applying` raises.
    """
    model: Any = loaded.model
    decoder, sample = model.get_decoder(), shaped_sample(prompt)
    encoded = encode(loaded, sample, SETTINGS)
    gold = encoded.answer
    assert gold is not None
    chosen = {text: method_of(method) for text, method in methods.items()}
    layers, tokens = len(decoder.layers), encoded.prompt.shape[1]
    plans = {text: method.stages(layers) for text, method in chosen.items()}
    shared = PromptSweep(model, encoded.prompt, {stages[0].first for stages in plans.values() if stages})

    def run(method: Method, plan: tuple[Stage, ...] | None) -> tuple[float | None, str, float]:
        """Score and words of the generated answer, and the NLL of the gold one."""
        state = prefill(loaded, sample, encoded, method, SETTINGS) if plan is None else shared.finish(plan)
        verdict = judge(model, state, encoded.rest, gold, method, loaded.tokenizer)
        if prompt.scorer is None:
            return None, "", verdict.nll
        with applying(model, method, loaded.tokenizer):
            answer = greedy_answer(model, state, encoded.rest, prompt.limit)
        said = str(loaded.tokenizer.decode(answer, skip_special_tokens=True))
        return prompt.scorer(said), said, verdict.nll

    full, same = run(method_of(FULL), ()), {"sample": digest(sample), **ran_on(model)}
    for text, method in chosen.items():
        score, said, nll = full if method.is_dense else run(method, plans[text])
        yield ShapeRow(
            shape=prompt.shape,
            seed=prompt.seed,
            held_out=prompt.seed % 2 == 1,
            model=loaded.name,
            policy=text,
            prompt=tokens,
            answer_tokens=len(gold),
            score=score,
            full_score=full[0],
            said=said,
            nll=nll,
            full_nll=full[2],
            speedup=speedup_bound(ModelShape.of(decoder.config), method, tokens),
            reference_speedup=reference_speedup(method, layers),
            **same,
        )
