"""Many policies on each sample: the shallow layers run once, and each policy reruns only the deeper ones."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import DynamicCache

from deltahalt.answering.documents import context_ends, format_turn
from deltahalt.engine.cache import fork
from deltahalt.errors import InputError
from deltahalt.flops import KNOWN_SHAPES, ModelShape
from deltahalt.host.compat import CACHE
from deltahalt.lab.bench.machine import number_format
from deltahalt.lab.evaluation.encoding import sample_ids, shared_ids
from deltahalt.lab.evaluation.once import canonical, measured_once
from deltahalt.lab.evaluation.prompt_sweep import Prefilled, PromptSweep
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.rows.base import Row, rows_so_far
from deltahalt.loading.models import LoadedModel, end_tokens
from deltahalt.methods.applying import applying, speedup_bound
from deltahalt.methods.base import Method
from deltahalt.methods.halting import method_of
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies import Dense

FULL = Dense()
REFERENCE_SHAPE, REFERENCE_PROMPT = KNOWN_SHAPES["qwen2.5-7b"], 16_384


@dataclass(frozen=True)
class SweepRow(Row):
    """One policy on one sample, answers teacher-forced.

    sample: the sample's digest. prompt, answer_tokens: number of tokens.
    exact: whether greedy decoding would give the whole answer. nll: negative log-likelihood of the answer, nats, mean
        over its tokens. full_exact, full_nll: the same for the full model.
    agreement: share of the tokens of the full model's own greedy answer that stay the most likely ones.
    speedup: ratio of true FLOPs, full model to policy, on this model and prompt. reference_speedup: the same ratio if
        the policy decided at the same relative depths in a model of Qwen2.5-7B's shape, on 16,384 tokens.
    halted_kv: "frozen" in older rows, in which deeper layers read K/V of halted tokens' last states; else "drop".
    query_free, max_answer_tokens: as in `SweepSettings`.
    dtype: the model's number format; empty in rows of older versions.
    """

    kind: ClassVar[str] = "sweep"

    sample: str
    task: str
    model: str
    policy: str
    prompt: int
    answer_tokens: int
    exact: bool
    nll: float
    full_exact: bool
    full_nll: float
    agreement: float
    speedup: float
    reference_speedup: float
    halted_kv: str = "drop"
    query_free: bool = False
    max_answer_tokens: int = 48
    dtype: str = ""


@dataclass(frozen=True)
class Verdict:
    """A teacher-forced answer. right: whether each token is the most likely one, [n] bool. nll: nats per token."""

    right: torch.Tensor
    nll: float


@dataclass(frozen=True)
class SweepSettings:
    """The settings that all policies of a sweep are run with.

    query_free: whether the question comes after the halted prefill, so that no policy sees it and one prefill could be
    used for many questions. max_answer_tokens: only this number of first tokens of an answer are judged.
    """

    query_free: bool = False
    max_answer_tokens: int = 48


@torch.inference_mode()
def sweep_sample(
    loaded: LoadedModel,
    sample: Sample,
    methods: Mapping[str, AnyMethod],
    settings: SweepSettings = SweepSettings(),
    own: torch.Tensor | None = None,
) -> Iterator[SweepRow]:
    """Measure each method on one sample, and yield its row.

    The result equals a halted prefill followed by teacher forcing: attention is causal, so the state of a prompt token
    does not depend on later tokens. A single answer therefore passes through the layers as trailing tokens of the
    prompt. If two answers are judged, each runs on the cache of the prefill. Methods of other stages need a prefill of
    their own.

    Args:
        loaded: The model and its tokenizer.
        sample: The prompt and its answer.
        methods: The methods by their texts in the rows.
        settings: The settings that all methods are run with.
        own: The full model's own answer [n], if it is known.

    Raises what `applying` raises.
    """
    model: Any = loaded.model
    decoder = model.get_decoder()
    encoded = encode(loaded, sample, settings)
    chosen = {text: method_of(method) for text, method in methods.items()}
    plans = {text: method.stages(len(decoder.layers)) for text, method in chosen.items()}
    firsts = {stages[0].first for stages in plans.values() if stages}

    shared = PromptSweep(model, encoded.prompt, firsts)
    if own is None:
        own = greedy_answer(model, shared.finish(()), encoded.rest, settings.max_answer_tokens)
    answer = own if encoded.answer is None else encoded.answer
    if answer is own:
        shared = shared.followed_by(torch.cat([encoded.rest, own[None, :-1]], dim=1))
    full = judge(model, shared.finish(()), encoded.rest, answer)
    for text, method in chosen.items():
        plan = plans[text]
        prefilled = prefill(loaded, sample, encoded, method, settings) if plan is None else shared.finish(plan)
        under = partial(judge, model, prefilled, encoded.rest, method=method, tokenizer=loaded.tokenizer)
        verdict = under(answer)
        agreed = verdict if answer is own else under(own)
        yield sweep_row(loaded, sample, text, method, encoded.prompt.shape[1], verdict, full, agreed, settings=settings)


def sweep_row(
    loaded: LoadedModel,
    sample: Sample,
    policy: str,
    method: AnyMethod,
    tokens: int,
    verdict: Verdict,
    full: Verdict,
    agreed: Verdict,
    *,
    settings: SweepSettings = SweepSettings(),
) -> SweepRow:
    """Return the row of a method that is called `policy`, on a sample whose prompt has `tokens` tokens.

    verdict, full: the verdicts on the answer, under the method and by the full model. agreed: the verdict on the full
    model's own answer, under the method.
    """
    model: Any = loaded.model
    shape = ModelShape.of(model.get_decoder().config)
    return SweepRow(
        sample=digest(sample),
        task=sample.task,
        model=loaded.name,
        policy=policy,
        prompt=tokens,
        answer_tokens=len(verdict.right),
        exact=bool(verdict.right.all()),
        nll=verdict.nll,
        full_exact=bool(full.right.all()),
        full_nll=full.nll,
        agreement=float(agreed.right.float().mean()),
        speedup=speedup_bound(shape, method, tokens),
        reference_speedup=reference_speedup(method, shape.layers),
        query_free=settings.query_free,
        max_answer_tokens=settings.max_answer_tokens,
        dtype=number_format(model),
    )


@dataclass(frozen=True)
class Encoded:
    """Token ids. prompt: [1, T], seen by policies. rest: [1, m], between prompt and answer. answer: [n] or None."""

    prompt: torch.Tensor
    rest: torch.Tensor
    answer: torch.Tensor | None


def encode(loaded: LoadedModel, sample: Sample, settings: SweepSettings) -> Encoded:
    """Return a sample's tokens, in the model's chat format if it has one.

    Raises InputError for a prompt longer than the model's context, for an empty answer, and, if the settings are
    query-free, for a sample without a separate question.
    """
    model: Any = loaded.model
    ids = sample_ids(loaded, sample)
    shared = shared_ids(loaded, sample, ids, query_free=settings.query_free)
    end = len(ids) if shared is None else shared
    answer = None
    if sample.answer is not None:
        answer = loaded.tokenizer(sample.answer, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        if len(answer) == 0:
            raise InputError(
                f"a {sample.task} sample has an empty answer: give some text, or null for the full model's own answer"
            )
        answer = answer[: settings.max_answer_tokens].to(model.device)
    return Encoded(ids[None, :end].to(model.device), ids[None, end:].to(model.device), answer)


def prefill(
    loaded: LoadedModel, sample: Sample, encoded: Encoded, method: Method, settings: SweepSettings
) -> Prefilled:
    """Run the prefill of a method that is not a policy, from the first layer on. Raises what `applying` raises."""
    model: Any = loaded.model
    prompts = {"input_ids": encoded.prompt, "attention_mask": torch.ones_like(encoded.prompt)}
    ends = None
    if method.reads_ends and sample.question:
        text = format_turn(loaded.tokenizer, sample.text, sample.lead)
        rest = encoded.rest.shape[1]
        ends = context_ends(loaded.tokenizer, text, sample.prompt, encoded.prompt.shape[1] + rest)
        ends = ends and (ends[0], max(0, ends[1] - rest))
    cache = DynamicCache(config=model.config)
    with applying(model, method, loaded.tokenizer) as applied:
        short = applied.shorten(prompts, [ends])
        state = model.get_decoder()(**short, **{CACHE: cache}, use_cache=True).last_hidden_state[:, -1:]
    return Prefilled(cache, state)


def judge(
    model: Any,
    prefilled: Prefilled,
    rest: torch.Tensor,
    answer: torch.Tensor,
    method: AnyMethod = FULL,
    tokenizer: Any = None,
) -> Verdict:
    """Judge `answer` [n] after a prefill under `method` and `rest` [1, m].

    Neither runs again if both passed through the prefill as trailing tokens.
    """
    logits = [model.get_output_embeddings()(prefilled.states[:, -len(answer) :])[0]]
    given, ran = answer[None, :-1], prefilled.states.shape[1] - 1
    if ran == 0:
        cache = fork(prefilled.cache)
        with applying(model, method, tokenizer) as applied:
            if rest.shape[1]:
                logits.append(model(rest, **{CACHE: cache}, logits_to_keep=1).logits[0])
            calls = given.split(1, dim=1) if applied.by_token else [given]
            logits += [model(tokens, **{CACHE: cache}).logits[0] for tokens in calls if tokens.shape[1]]
    judged = torch.cat(logits)[-len(answer) :]
    nll = torch.nn.functional.cross_entropy(judged.float(), answer)
    return Verdict(judged.argmax(dim=-1) == answer, float(nll))


def greedy_answer(model: Any, prefilled: Prefilled, rest: torch.Tensor, limit: int) -> torch.Tensor:
    """Return the full model's greedy answer after its prefill and `rest` [1, m]: 1 to `limit` tokens [n]."""
    ends, cache = end_tokens(model), fork(prefilled.cache)
    logits = model.get_output_embeddings()(prefilled.states)
    if rest.shape[1]:
        logits = model(rest, **{CACHE: cache}, logits_to_keep=1).logits
    tokens = [int(logits[0, -1].argmax())]
    while len(tokens) < limit and tokens[-1] not in ends:
        step = torch.tensor([[tokens[-1]]], device=rest.device)
        tokens.append(int(model(step, **{CACHE: cache}).logits[0, -1].argmax()))
    return torch.tensor(tokens, device=rest.device)


def reference_speedup(method: AnyMethod, layers: int) -> float:
    """Return the true-FLOPs ratio, full model to method, on Qwen2.5-7B's shape and a prompt of 16,384 tokens.

    Start layers of `layers` are scaled to the depth of that shape.
    """
    return speedup_bound(REFERENCE_SHAPE, method_of(method).scaled(layers, REFERENCE_SHAPE.layers), REFERENCE_PROMPT)


def sweep(
    loaded: LoadedModel,
    samples: Iterable[Sample],
    methods: Mapping[str, AnyMethod],
    rows: Path,
    settings: SweepSettings = SweepSettings(),
    *,
    own: Mapping[str, torch.Tensor] = {},
    tick: Callable[[], None] = lambda: None,
) -> Iterator[SweepRow]:
    """Measure every method on every sample, except where the JSONL file `rows` has a row already.

    Args:
        loaded: The model and its tokenizer.
        samples: The prompts and their answers.
        methods: The methods by their texts in the rows. A row of the same method under another text counts, too.
        rows: The JSONL file that new rows are appended to, one by one.
        settings: The settings that all methods are run with.
        own: The full model's own answers that are known, by the sample's digest.
        tick: Called after each sample.

    Yields:
        All rows of this model and number format, these samples, methods and settings, each before it is written. Older
        rows without a number format count as well.
    """
    formats = number_format(loaded.model), ""
    known = (row for row in read_sweep(rows) if row.model == loaded.name and row.dtype in formats)
    done = {
        (row.sample, canonical(row.policy)): row
        for row in known
        if _settings(row) == settings and row.halted_kv == "drop"
    }
    numbered = ((digest(sample), sample) for sample in samples)
    measures = (
        (number, partial(sweep_sample, loaded, sample, settings=settings, own=own.get(number)))
        for number, sample in numbered
    )
    yield from measured_once(measures, methods, done, rows, tick)


def _settings(row: SweepRow) -> SweepSettings:
    return SweepSettings(row.query_free, row.max_answer_tokens)


def read_sweep(path: Path) -> list[SweepRow]:
    """Return the rows of a JSONL file; none if there is no file yet."""
    return rows_so_far(path, SweepRow)


def digest(sample: Sample) -> str:
    """Return the digest by which rows name a sample."""
    fields = {name: value for name, value in vars(sample).items() if name != "shaped"}
    if sample.shaped is not None:
        fields["shaped"] = sample.shaped.said
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
