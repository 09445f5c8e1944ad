"""Calibration: measure candidate policies on a model by successive halving, and keep the best for each target."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
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
from deltahalt.lab.evaluation.samples import Sample, taking_turns
from deltahalt.lab.evaluation.sweep import SweepSettings, digest, sweep
from deltahalt.loading.models import LoadedModel
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import format_policy
from deltahalt.profile import Profile, Signature

ROUNDS = (12, 36)  # samples in all rounds but the last
Fields = dict[float, list[AnyPolicy]]  # by target speedup
FEWEST = 4  # policies that a round leaves at least, if it has as many


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

    The first round measures a decision at every layer, and every exit, on a few samples. The second measures the better
    third of these, and variants of them, on the same samples. The third measures the better third of all on three times
    as many samples, and the last the better third of those on all samples; `choose` decides among the last. The usual
    policies stay in all rounds, except exits, which compete with the others.

    The loss is measured on the full model's own answers, so that questions that it cannot answer add no noise.

    Args:
        loaded: The model and its tokenizer.
        samples: The samples to measure on; their answers are ignored.
        targets: Speedups as in `reference_speedup`; the policy of the first becomes the default.
        rows: The JSONL file that measurements are appended to. An interrupted calibration continues from it.
        max_loss: If given, choose one policy only: the fastest in the last round with at most this loss.
        layers: The layers at which early decisions are tried; None for all that can decide.
        query_free: Whether the question comes after the halted prefill, so that no policy sees it.
        tick: Called before each sample with a description of the work and the share of all work that is done.

    Raises:
        InputError: If there are no samples, no policy reaches a target or keeps the loss, or a layer cannot decide.
    """
    model: Any = loaded.model
    decoder = model.get_decoder()
    windows = family_of(decoder.config).windows(decoder.config)
    settings, search = SweepSettings(query_free=query_free), BLIND if query_free else ASKED
    own = [replace(sample, answer=None) for sample in in_turn(samples)]
    few, more = ROUNDS
    tried: dict[AnyPolicy, Rated] = {}
    begin = perf_counter()

    def measure(fields: Fields, count: int) -> Fields:
        """Measure the policies on the first `count` samples; return those of each target, the lowest loss first."""
        wanted = {format_policy(policy): policy for policy in _distinct(chain(*fields.values()))}
        some = own[:count]
        what = f"{', '.join(f'{target}x' for target in fields)}: {len(wanted)} policies on {len(some)} samples"
        advance = share.begin(len(wanted), len(some), what)
        found = list(sweep(loaded, some, wanted, rows, settings, own=answers, tick=advance))
        tried.update((one.policy, one) for one in rate(found))
        return {target: sorted(field, key=lambda policy: tried[policy].loss) for target, field in fields.items()}

    def halve(fields: Fields, measure: Callable[[Fields, int], Fields]) -> Fields:
        """Run all rounds, in which `measure` ranks the policies; return the last ones of each target."""
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
        """Note the work of a round, as if its policies were ranked in the order given."""
        planned.append((len(_distinct(chain(*fields.values()))), min(count, len(own))))
        return fields

    if not samples:
        raise InputError("there are no samples to calibrate on: give one or more")
    fields, usual = first_fields(layers, targets, windows, search, all_needed=max_loss is None)
    # The rounds decide which exit suits this model.
    kept = {target: [policy for policy in some if exit_of(policy) is None] for target, some in usual.items()}
    planned: list[tuple[int, int]] = []
    halve(fields, plan)
    share = Share(planned, tick)
    share.say("answers of the full model")
    said = own_answers(loaded, own, settings.max_answer_tokens)
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
    """Raise InputError if a model with this configuration cannot be calibrated with these arguments of `calibrate`."""
    if max_loss is not None and not 0 <= max_loss < inf:
        raise InputError(f"--max-loss is {max_loss}: give 0 or more nats per token")
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
    """Return two dicts by target: the policies to try first, and the usual policies.

    layers: the layers at which early decisions are tried; None for all that can decide. Targets that no policy reaches
    are left out; if `all_needed`, they raise InputError. A layer that cannot decide raises InputError, too.
    """
    able = deciding_layers(len(windows))
    if unable := sorted(set(layers or ()).difference(able)):
        raise InputError(f"policies cannot decide at layers {unable} of this model: choose among {able}")
    tried = layers or able
    fields = {target: _distinct(first_field(tried, target, windows, search)) for target in targets}
    if all_needed and (missed := [target for target, field in fields.items() if not field]):
        raise InputError(f"no policy that is tried on this model reaches {missed[0]}x: give a lower target speedup")
    fields = {target: field for target, field in fields.items() if field}
    return fields, {target: usual_policies(tried, target, windows, search) for target in fields}


def default_samples(device: str, *, query_free: bool) -> tuple[str, int]:
    """Return the default data and characters for `load_samples`: fewer and shorter samples on a CPU.

    Prompts of shapes have no separate question, so a query-free calibration does without them.
    """
    on_cpu = device.startswith("cpu")
    if query_free:
        data = "generated:24" if on_cpu else "generated:108"
    else:
        data = "generated:12+shapes:25" if on_cpu else "generated:24+shapes:25"
    return data, 4_000 if on_cpu else 12_000


def better_third(ranked: Sequence[AnyPolicy]) -> list[AnyPolicy]:
    """Return the first third, rounded up, and at least `FEWEST` policies if there are as many."""
    return list(ranked[: max(FEWEST, ceil(len(ranked) / 3))])


def _distinct(policies: Iterable[AnyPolicy | None]) -> list[AnyPolicy]:
    return list(dict.fromkeys(policy for policy in policies if policy))


def in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with their tasks in turn, so that the first few cover all tasks."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    return taking_turns(by_task.values())
