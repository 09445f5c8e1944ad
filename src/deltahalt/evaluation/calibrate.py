"""Calibration: measure candidate policies on a model, keep the best for each speed that is asked for."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
import transformers

import deltahalt
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.evaluation.samples import Sample
from deltahalt.evaluation.summary import PolicySummary, summarize
from deltahalt.evaluation.sweep import SweepRow, Way, reference_speedup, sweep
from deltahalt.families import family_of
from deltahalt.machine import machine_name
from deltahalt.models import LoadedModel
from deltahalt.policies import parse_policy
from deltahalt.profile import Choice, Profile, Signature, attention_policy

DEEPEST = 0.62  # of the depth: a decision later than that saves too little
HIGHEST = 0.95  # ratio that a stage may have
BEST = 3  # layers that are tried with other settings, and in pairs
Settings = dict[str, Any]  # options of window attention
ALL: Settings = {"ahead": 10_000, "across": "max"}  # look ahead at every deeper layer: lost least where it was measured
OTHERS: tuple[Settings, ...] = (ALL | {"chunk": 128}, ALL | {"chunk": 32}, {"ahead": 12}, {"ahead": 6}, {})
NOISE = 0.005  # losses that differ by less, in nats a token, are equal
ANSWER = 24  # tokens of each answer that are judged


def calibrate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    targets: Sequence[float],
    rows: Path,
    *,
    max_loss: float | None = None,
    layers: Sequence[int] | None = None,
    tick: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Choose a policy for each target speedup: the one with the least loss that is at least that fast.

    Loss is judged on what the full model itself answers, so that a question it cannot answer is no noise.
    targets: speedups as in `reference_speedup`; the first becomes the default. max_loss: choose one policy only, the
    fastest of those measured that lose no more. layers: try these only. rows: JSONL that every measurement goes to; a
    calibration that was cut short goes on from it. tick: told what is measured, before each sample.

    Every layer first, at the ratio that gives the target; then other chunks, shorter looks ahead and a second decision
    for the best. Raises InputError where no policy reaches a target, none keeps the loss, or a layer cannot decide.
    """
    model: Any = loaded.model
    decoder = model.get_decoder()
    own = [replace(sample, answer=None) for sample in samples]
    way = Way(max_answer_tokens=ANSWER)
    measured: dict[str, Choice] = {}
    begin = perf_counter()

    def measure(policies: Iterable[str | None], what: str) -> list[Choice]:
        """Rate the policies that there are, best first."""
        wanted = list(dict.fromkeys(policy for policy in policies if policy))
        new = [policy for policy in wanted if policy not in measured]
        tick(what)
        found = rate(sweep(loaded, own, new, rows, way, tick=lambda: tick(what))) if new else []
        measured.update((choice.policy, choice) for choice in found)
        return sorted((measured[policy] for policy in wanted), key=lambda choice: choice.loss)

    depth = len(decoder.layers)
    able = deciding_layers(decoder)
    if unable := sorted(set(layers or ()).difference(able)):
        raise InputError(f"layers {unable} cannot decide: choose among {able}")
    for target in targets:
        ranked = measure((single(layer, target, depth, ALL) for layer in layers or able), f"{target}x: which layer")
        if not ranked and max_loss is None:
            raise InputError(f"no schedule of this model reaches {target}x: ask for less")
        best = [choice.policy for choice in ranked[:BEST]]
        varied = [single(layer_of(policy), target, depth, other) for policy in best for other in OTHERS]
        both = [pair(first, last, target, depth) for first, last in permutations(best, 2)]
        measure([*varied, *both], f"{target}x: other settings, two decisions")

    return Profile(
        model=loaded.name,
        signature=Signature.of(decoder),
        choices=choose(list(measured.values()), targets, max_loss),
        evidence={
            "tried": [asdict(choice) for choice in sorted(measured.values(), key=lambda choice: choice.speedup)],
            "tasks": sorted({sample.task for sample in samples}),
            "samples": len(samples),
            "dtype": str(model.dtype).removeprefix("torch."),
            "machine": machine_name(model.device),
            "seconds": round(perf_counter() - begin),
            "deltahalt": deltahalt.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def rate(rows: Sequence[SweepRow]) -> list[Choice]:
    """What sweep rows say of each policy, every task counting the same."""
    by_task = [summarize(row for row in rows if row.task == task) for task in sorted({row.task for row in rows})]
    return [_mean([line for lines in by_task for line in lines if line.policy == policy]) for policy in _policies(rows)]


def _policies(rows: Sequence[SweepRow]) -> list[str]:
    return list(dict.fromkeys(row.policy for row in rows))


def _mean(tasks: Sequence[PolicySummary]) -> Choice:
    return Choice(
        policy=tasks[0].policy,
        speedup=round(tasks[0].reference_speedup, 3),
        loss=round(fmean(task.nll_change for task in tasks), 4),
        exact=round(fmean(task.exact for task in tasks), 4),
    )


def choose(measured: Sequence[Choice], targets: Sequence[float], max_loss: float | None) -> tuple[Choice, ...]:
    """For each target the least loss at that speed or above; or, with `max_loss`, the fastest that loses no more.

    Of equal losses the one that halts the smallest share of the tokens: real prompts are harder than generated ones.
    Raises InputError if there is none.
    """
    if max_loss is not None:
        kept = [choice for choice in measured if choice.loss <= max_loss]
        if not kept:
            raise InputError(f"every policy loses more than {max_loss}: allow more")
        return (max(kept, key=lambda choice: choice.speedup),)
    chosen = []
    for target in targets:
        fast = [choice for choice in measured if choice.speedup >= target]
        if not fast:
            raise InputError(f"no policy that was measured reaches {target}x: ask for less")
        least = min(choice.loss for choice in fast)
        equal = [choice for choice in fast if choice.loss <= least + NOISE]
        chosen.append(min(equal, key=lambda choice: (_halted_share(choice.policy), choice.loss)))
    return tuple(dict.fromkeys(chosen))


def _halted_share(policy: str) -> float:
    stages = parse_policy(policy).stages
    return stages[-1].pruning_ratio if stages else 0.0


def deciding_layers(decoder: Any) -> list[int]:
    """Layers that may decide: those that see the whole prompt, from the first few to a little past half depth.

    Raises UnsupportedError if there is none.
    """
    windows = family_of(decoder.config).windows(decoder.config)
    deepest = int(DEEPEST * len(windows))
    layers = [layer for layer in range(len(windows) // 8, deepest + 1) if windows[layer] is None]
    if not layers:
        raise UnsupportedError("no layer of this model sees the whole prompt, so attention cannot be asked there")
    return layers


def single(layer: int, target: float, depth: int, settings: Settings) -> str | None:
    """One decision at `layer` with the ratio that gives `target`, in a model `depth` layers deep; None if none does."""
    ahead = min(settings.get("ahead", 0), depth - 1 - layer)
    return _solve(lambda ratio: attention_policy(layer, ratio, **settings | {"ahead": ahead}), target, depth)


def layer_of(policy: str) -> int:
    """The layer at which a policy of one decision takes it."""
    (stage,) = parse_policy(policy).stages
    assert isinstance(stage.start, int)
    return stage.start


def pair(first: str, last: str, target: float, depth: int) -> str | None:
    """Two decisions that give `target` together, at the layers of two single ones; None if none do.

    The first halts half of what it would alone, or three quarters where half is too little; the second does the rest.
    """
    before, after = parse_policy(first).stages[0], parse_policy(last).stages[0]
    if before.start >= after.start:
        return None
    for share in (0.5, 0.75):
        ratio = round(share * before.pruning_ratio, 3)
        both = _solve(partial(_join, _with_ratio(first, ratio), last), target, depth, ratio)
        if both is not None:
            return both
    return None


def _join(first: str, last: str, ratio: float) -> str:
    return f"{first}+{_with_ratio(last, ratio)}"


def _with_ratio(policy: str, ratio: float) -> str:
    return re.sub(r"pruning_ratio=[\d.]+", f"pruning_ratio={ratio}", policy)


def _solve(policy: Callable[[float], str], target: float, depth: int, lowest: float = 0.0) -> str | None:
    """`policy` with the smallest ratio, in steps of 0.005, whose schedule is at least as fast as `target`."""
    ratios = [step / 200 for step in range(int(lowest * 200) + 1, int(HIGHEST * 200) + 1)]
    at = bisect_left(ratios, target, key=lambda ratio: reference_speedup(parse_policy(policy(ratio)), depth))
    return policy(ratios[at]) if at < len(ratios) else None
