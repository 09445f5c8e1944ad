"""Many policies on one sample: the shallow layers run once, and each policy reruns only what comes after it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.attach import halting
from deltahalt.cache import HaltedCache, fork
from deltahalt.call import Call, prepare
from deltahalt.decoder import run_layers
from deltahalt.documents import encode_turn
from deltahalt.errors import InputError
from deltahalt.evaluation.samples import Sample
from deltahalt.families import family_of
from deltahalt.flops import KNOWN_SHAPES, ModelShape, savings
from deltahalt.models import LoadedModel, end_tokens
from deltahalt.policies import Dense, parse_policy
from deltahalt.policy import AnyPolicy, Progressive, Stage, place
from deltahalt.stream import TokenStream

REFERENCE_SHAPE, REFERENCE_PROMPT = KNOWN_SHAPES["qwen2.5-7b"], 16_384


@dataclass(frozen=True)
class SweepRow:
    """One policy on one sample, answers teacher-forced.

    exact: greedy decoding would give the whole answer. nll: mean negative log-likelihood of the answer's tokens, nats;
    full_exact, full_nll: the same of the full model. agreement: share of the full model's own greedy answer that stays
    the most likely next token. speedup: true-FLOPs ratio on this model and prompt; reference_speedup: of the same
    schedule, in fractions of the depth, on Qwen2.5-7B's shape at 16K.
    """

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


@dataclass(frozen=True)
class Verdict:
    """Teacher-forced answers. right: [n] bool, whether each token is the most likely one; nll: mean, nats."""

    right: torch.Tensor
    nll: float


@torch.inference_mode()
def sweep_sample(
    loaded: LoadedModel, sample: Sample, policies: Sequence[str], *, max_answer_tokens: int = 48
) -> Iterator[SweepRow]:
    """Measure each policy (see `parse_policy`) on one sample.

    Causality makes this equal to a halted prefill and teacher forcing: a prompt token's state at layer l_s does not
    depend on what comes later. Raises what `halting` raises.
    """
    model: Any = loaded.model
    decoder = model.get_decoder()
    prompt, answer = encode(loaded, sample, max_answer_tokens)
    chosen = {text: parse_policy(text) for text in policies}
    plans = {text: place(policy, len(decoder.layers)) for text, policy in chosen.items()}
    firsts = {stages[0].first for stages in plans.values() if stages}

    shared = PromptSweep(model, prompt, firsts)
    own = greedy_answer(model, shared.full_cache, shared.full_state, max_answer_tokens)
    answer = own if answer is None else answer
    full = judge(model, shared.full_cache, shared.full_state, answer)
    shape, layers, digest = ModelShape.of(decoder.config), len(decoder.layers), _digest(sample)
    for text, stages in plans.items():
        cache, state = shared.finish(stages)
        verdict = judge(model, cache, state, answer)
        agreed = judge(model, cache, state, own)
        yield SweepRow(
            sample=digest,
            task=sample.task,
            model=loaded.name,
            policy=text,
            prompt=prompt.shape[1],
            answer_tokens=len(answer),
            exact=bool(verdict.right.all()),
            nll=verdict.nll,
            full_exact=bool(full.right.all()),
            full_nll=full.nll,
            agreement=float(agreed.right.float().mean()),
            speedup=savings(shape, chosen[text], prompt.shape[1]).true_speedup,
            reference_speedup=reference_speedup(chosen[text], layers),
        )


class PromptSweep:
    """One prompt run through the full model, with the tokens remembered as they enter each layer of `firsts`."""

    def __init__(self, model: Any, prompt: torch.Tensor, firsts: set[int]) -> None:
        self.decoder = model.get_decoder()
        self.full_cache = DynamicCache(config=model.config)
        self.layers = list(enumerate(self.decoder.layers))
        stream, self.call = self._prepare(prompt, self.full_cache)
        self.entering: dict[int, TokenStream] = {}
        bounds = sorted({0, *firsts, len(self.layers)})
        for begin, end in pairwise(bounds):
            self.entering[begin] = stream
            stream, _ = run_layers(self.layers[begin:end], (), stream, self.call)
        self.full_state = self._last(stream)

    def finish(self, stages: tuple[Stage, ...]) -> tuple[DynamicCache, torch.Tensor]:
        """The prompt's cache and its last token's state [1, 1, D] after halting at `stages`."""
        if not stages:
            return self.full_cache, self.full_state
        first = stages[0].first
        cache = fork(self.full_cache)
        cache.layers[first:] = DynamicCache(config=self.decoder.config).layers[first:]
        call = replace(self.call, cache=cache, masks={})
        stream, trace = run_layers(self.layers[first:], stages, self.entering[first], call)
        if trace.stages:
            tail = min(stage.policy.keep_last for stage in stages)
            HaltedCache.adopt(cache, trace.segments, seen=call.width, tail=tail)
        return cache, self._last(stream)

    def _prepare(self, prompt: torch.Tensor, cache: DynamicCache) -> tuple[TokenStream, Call]:
        family = family_of(self.decoder.config)
        return prepare(self.decoder, family, freeze=False, input_ids=prompt, past_key_values=cache, use_cache=True)

    def _last(self, stream: TokenStream) -> torch.Tensor:
        last: torch.Tensor = self.decoder.norm(stream.hidden[:, -1:])
        return last


def encode(loaded: LoadedModel, sample: Sample, max_answer_tokens: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt ids [1, T], in the model's chat format if it has one, and answer ids [n] or None.

    Raises InputError for a prompt longer than the model takes, or an empty answer.
    """
    model: Any = loaded.model
    tokenizer = loaded.tokenizer
    ids = encode_turn(tokenizer, model.config, sample.prompt, sample.lead)["input_ids"]
    if sample.answer is None:
        return ids.to(model.device), None
    answer = tokenizer(sample.answer, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    if len(answer) == 0:
        raise InputError(f"a {sample.task} sample has an empty answer: give some text, or null for the model's own")
    return ids.to(model.device), answer[:max_answer_tokens].to(model.device)


def judge(model: Any, cache: DynamicCache, state: torch.Tensor, answer: torch.Tensor) -> Verdict:
    """How likely `answer` [n] is after a prefill that left `cache` and the last token's state [1, 1, D]."""
    logits = model.get_output_embeddings()(state)[0]  # [1, V]
    if len(answer) > 1:
        with halting(model, Dense()):
            later = model(answer[None, :-1], past_key_values=fork(cache)).logits[0]
        logits = torch.cat([logits, later])
    nll = torch.nn.functional.cross_entropy(logits.float(), answer)
    return Verdict(logits.argmax(dim=-1) == answer, float(nll))


def greedy_answer(model: Any, cache: DynamicCache, state: torch.Tensor, limit: int) -> torch.Tensor:
    """Up to `limit` tokens [n] that the model itself says next, until it ends; at least one."""
    ends = end_tokens(model)
    cache, tokens = fork(cache), [int(model.get_output_embeddings()(state).argmax())]
    while len(tokens) < limit and tokens[-1] not in ends:
        step = torch.tensor([[tokens[-1]]], device=state.device)
        tokens.append(int(model(step, past_key_values=cache).logits[0, -1].argmax()))
    return torch.tensor(tokens, device=state.device)


def reference_speedup(policy: AnyPolicy, layers: int) -> float:
    """True-FLOPs ratio of the schedule on Qwen2.5-7B's shape at 16K, start layers taken as fractions of `layers`."""
    depth = REFERENCE_SHAPE.layers
    stages = [
        replace(stage, start=stage.start * depth // layers if isinstance(stage.start, int) else stage.start)
        for stage in policy.stages
    ]
    scaled: AnyPolicy = Progressive(stages) if stages else Dense()
    return savings(REFERENCE_SHAPE, scaled, REFERENCE_PROMPT).true_speedup


def sweep(
    loaded: LoadedModel,
    samples: Iterable[Sample],
    policies: Sequence[str],
    rows: Path,
    *,
    max_answer_tokens: int = 48,
    tick: Callable[[], None] = lambda: None,
) -> list[SweepRow]:
    """Measure every policy on every sample; rows are added to the JSONL file as they come, and those in it are kept.

    tick: called after each sample. Returns all rows of this model, samples and policies.
    """
    done = {(row.sample, row.policy): row for row in read_sweep(rows) if row.model == loaded.name}
    rows.parent.mkdir(parents=True, exist_ok=True)
    wanted: list[SweepRow] = []
    with rows.open("a", encoding="utf-8") as file:
        for sample in samples:
            missing = [policy for policy in policies if (_digest(sample), policy) not in done]
            for row in sweep_sample(loaded, sample, missing, max_answer_tokens=max_answer_tokens) if missing else ():
                done[row.sample, row.policy] = row
                file.write(json.dumps(asdict(row)) + "\n")
                file.flush()
            wanted += [done[_digest(sample), policy] for policy in policies]
            tick()
    return wanted


def read_sweep(path: Path) -> list[SweepRow]:
    """The rows of a JSONL file; none if there is no file yet."""
    if not path.exists():
        return []
    return [SweepRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _digest(sample: Sample) -> str:
    return hashlib.sha256(json.dumps(asdict(sample)).encode()).hexdigest()[:16]
