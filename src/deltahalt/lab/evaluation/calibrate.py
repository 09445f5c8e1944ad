"""Calibration: measure candidate policies on a model by successive halving, keep the best for each speed asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from math import ceil, inf
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

import deltahalt
from deltahalt.errors import InputError
from deltahalt.host.families import family_of
from deltahalt.lab.bench.machine import machine_name, number_format
from deltahalt.lab.evaluation.answers import own_answers
from deltahalt.lab.evaluation.candidates import (
    ASKED,
    BLIND,
    Search,
    deciding_layers,
    exit_of,
    first_field,
    usual_policies,
    varied,
)
from deltahalt.lab.evaluation.progress import Share, Tick
from deltahalt.lab.evaluation.rating import Rated, choose, evidence, rate
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.evaluation.sweep import Way, digest, sweep
from deltahalt.loading.models import LoadedModel
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import format_policy
from deltahalt.profile import Profile, Signature

ROUNDS = (12, 36)  # samples of all rounds but the last: one and three of each kind that is generated
Fields = dict[float, list[AnyPolicy]]  # by target speedup
FEWEST = 4  # policies that a round leaves, where there are as many


def calibrate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    targets: Sequence[float],
    rows: Path,
    *,
    max_loss: float | None = None,
    layers: Sequence[int] | None = None,
    query_free: bool = False,
    tick: Tick = lambda _what, _done: None,
) -> Profile:
    """Choose a policy for each target speedup by successive halving: see docs/calibration.md.

    Every layer, and every exit, on a few samples; for the better third of them other settings on the same; of all these
    the better third on three times as many, and the better third of those on all. `choose` decides among the last. The
    usual policies go through all rounds, save exits, which compete with the others.
    Loss is judged on what the full model itself answers, so that a question it cannot answer is no noise.

    targets: speedups as in `reference_speedup`; the first becomes the default. max_loss: choose one policy only, the
    fastest of the last that loses no more. layers: only these decide early. query_free: no policy sees the question.
    rows: JSONL that every measurement goes to; a calibration that was cut short goes on from it. tick: called
    with what is measured and the share of all work that is done, before each sample.

    Raises InputError for no samples, where no policy reaches a target or keeps the loss, or a layer cannot decide.
    """
    model: Any = loaded.model
    decoder = model.get_decoder()
    windows = family_of(decoder.config).windows(decoder.config)
    way, search = Way(query_free=query_free), BLIND if query_free else ASKED
    own = [replace(sample, answer=None) for sample in in_turn(samples)]
    few, more = ROUNDS
    tried: dict[AnyPolicy, Rated] = {}
    begin = perf_counter()

    def measure(fields: Fields, count: int) -> Fields:
        """The policies of each target, best on the first `count` samples first."""
        wanted = {format_policy(policy): policy for policy in _distinct(chain(*fields.values()))}
        some = own[:count]
        what = f"{', '.join(f'{target}x' for target in fields)}: {len(wanted)} policies on {len(some)} samples"
        advance = share.begin(len(wanted), len(some), what)
        found = sweep(loaded, some, wanted, rows, way, own=answers, tick=advance)
        tried.update((one.policy, one) for one in rate(found))
        return {target: sorted(field, key=lambda policy: tried[policy].loss) for target, field in fields.items()}

    def halve(fields: Fields, measure: Callable[[Fields, int], Fields]) -> Fields:
        """The last policies of each target, by rounds of which `measure` ranks each."""
        best = {target: better_third(field) for target, field in measure(fields, few).items()}
        fields = {
            target: _distinct([*kept[target], *field, *varied(field, target, windows, search)])
            for target, field in best.items()
        }
        for count in (few, more):
            ranked = measure(fields, count)
            fields = {target: _distinct([*kept[target], *better_third(field)]) for target, field in ranked.items()}
        return measure(fields, len(own))

    def plan(fields: Fields, count: int) -> Fields:
        """Note how much a round is, if the policies do as well as they come."""
        planned.append((len(_distinct(chain(*fields.values()))), min(count, len(own))))
        return fields

    if not samples:
        raise InputError("there are no samples to calibrate on: give one or more")
    fields, usual = first_fields(layers, targets, windows, search, all_needed=max_loss is None)
    # Which exit is usual for this model is for the rounds to tell.
    kept = {target: [policy for policy in some if exit_of(policy) is None] for target, some in usual.items()}
    planned: list[tuple[int, int]] = []
    halve(fields, plan)
    share = Share(planned, tick)
    share.say("what the full model answers")
    said = own_answers(loaded, own, way.max_answer_tokens)
    answers = {digest(sample): answer for sample, answer in zip(own, said, strict=True)}
    fields = halve(fields, measure)

    return Profile(
        model=loaded.name,
        signature=Signature.of(decoder),
        choices=choose([tried[policy] for policy in _distinct(chain(*fields.values()))], targets, max_loss, usual),
        evidence={
            "tried": evidence(tried.values()),
            "tasks": sorted({sample.task for sample in samples}),
            "samples": len(samples),
            "measurements": sum(len(one.changes) for one in tried.values()),
            "dtype": number_format(model),
            "machine": machine_name(model.device),
            "seconds": round(perf_counter() - begin),
            "deltahalt": deltahalt.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        query_free=query_free,
    )


def check_targets(
    config: Any,
    targets: Sequence[float],
    layers: Sequence[int] | None,
    max_loss: float | None,
    *,
    query_free: bool,
) -> None:
    """Raise InputError where a model with this configuration cannot be calibrated so: arguments as in `calibrate`."""
    if max_loss is not None and not 0 <= max_loss < inf:
        raise InputError(f"the most loss is {max_loss}: give a number of nats a token, 0 or more, as --max-loss")
    decoder = config.get_text_config()
    windows, search = family_of(decoder).windows(decoder), BLIND if query_free else ASKED
    first_fields(layers, targets, windows, search, all_needed=max_loss is None)


def first_fields(
    layers: Sequence[int] | None,
    targets: Sequence[float],
    windows: Sequence[int | None],
    search: Search,
    *,
    all_needed: bool,
) -> tuple[dict[float, list[AnyPolicy]], dict[float, list[AnyPolicy]]]:
    """By target, what is tried first, and what is usual. layers: that may decide early; None for all that can.

    Targets that nothing reaches are left out, or refused if `all_needed`. Raises InputError for these, and for a layer
    that cannot decide.
    """
    able = deciding_layers(len(windows))
    if unable := sorted(set(layers or ()).difference(able)):
        raise InputError(f"layers {unable} cannot decide: choose among {able}")
    tried = layers or able
    fields = {target: _distinct(first_field(tried, target, windows, search)) for target in targets}
    if all_needed and (missed := [target for target, field in fields.items() if not field]):
        raise InputError(f"no schedule of this model reaches {missed[0]}x: ask for less")
    fields = {target: field for target, field in fields.items() if field}
    return fields, {target: usual_policies(tried, target, windows, search) for target in fields}


def default_samples(device: str) -> tuple[str, int]:
    """What `load_samples` is given where nobody says: data and characters, fewer on a CPU."""
    return ("generated:24", 4_000) if device.startswith("cpu") else ("generated:108", 12_000)


def better_third(ranked: Sequence[AnyPolicy]) -> list[AnyPolicy]:
    """The first third, rounded up, and no fewer than `FEWEST` where there are as many."""
    return list(ranked[: max(FEWEST, ceil(len(ranked) / 3))])


def _distinct(policies: Iterable[AnyPolicy | None]) -> list[AnyPolicy]:
    return list(dict.fromkeys(policy for policy in policies if policy))


def in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their tasks in turn, so that the first few are of all."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    turns = zip_longest(*by_task.values())
    return [sample for turn in turns for sample in turn if sample is not None]
