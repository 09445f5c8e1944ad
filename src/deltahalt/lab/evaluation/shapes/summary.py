"""Rows of shapes brought down to a line a policy and shape, and as a table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, stdev

from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.rows.markdown import differing, table

NEAR_ZERO = 0.2  # mean score below which the full model cannot do a shape
ALL = "all that count"
Change = tuple[float, float]  # mean and its standard error

line = attrgetter("model", "dtype", "policy")


@dataclass(frozen=True)
class ShapeSummary:
    """A policy on the prompts of a shape, or on those of all shapes (`ALL`).

    full, score: mean scores of generated answers; change: of the score, prompt by prompt. All three None where
    generation has no rule. counts: False where the full model cannot do the shape: then `change` says nothing. nll:
    change of NLL, nats a token, prompt by prompt. Standard errors of fewer than two prompts are NaN.
    """

    model: str
    dtype: str
    policy: str
    shape: str
    prompts: int
    full: float | None
    score: float | None
    change: Change | None
    counts: bool
    nll: Change
    reference_speedup: float


def summarize(rows: Iterable[ShapeRow]) -> list[ShapeSummary]:
    """For each model and policy a line a shape, in the order of the rows, and one of all.

    The scores of all are means over prompts of shapes that count; its NLL is of every prompt. Of rows of the same
    prompt, the last counts.
    """
    lines: dict[tuple[str, str, str], dict[str, ShapeRow]] = {}
    for row in rows:
        lines.setdefault(line(row), {})[row.sample] = row
    found: list[ShapeSummary] = []
    for by_sample in lines.values():
        own = list(by_sample.values())
        by_shape = {shape: [row for row in own if row.shape == shape] for shape in dict.fromkeys(r.shape for r in own)}
        parts = [_summary(shape, some, some) for shape, some in by_shape.items()]
        counting = [row for part in parts if part.counts for row in by_shape[part.shape]]
        found += [*parts, _summary(ALL, counting, own)]
    return found


def markdown(rows: Sequence[ShapeRow]) -> str:
    """A Markdown table of `summarize`: scores of generated answers in percent, and NLL in nats a token.

    Rows of one shape have no line of all shapes.
    """
    one_shape = len({row.shape for row in rows}) == 1
    lines = [line for line in summarize(rows) if not (one_shape and line.shape == ALL)]
    return table(
        {
            **differing({"model": [one.model for one in lines], "dtype": [one.dtype for one in lines]}),
            "policy": [f"`{one.policy}`" for one in lines],
            "speedup": [f"{one.reference_speedup:.2f}x" for one in lines],
            "shape": [one.shape for one in lines],
            "prompts": [f"{one.prompts}" for one in lines],
            "full": ["" if one.full is None else f"{100 * one.full:.1f}" for one in lines],
            "policy's": ["" if one.score is None else f"{100 * one.score:.1f}" for one in lines],
            "difference": [difference(one) for one in lines],
            "NLL change": [f"{one.nll[0]:+.3f} ± {one.nll[1]:.3f}" for one in lines],
        }
    )


def difference(one: ShapeSummary) -> str:
    """The change of the score in percent with its standard error, or why there is none."""
    if one.change is None:
        return ""
    if not one.counts:
        return "full model fails: does not count"
    return f"{100 * one.change[0]:+.1f} ± {100 * one.change[1]:.1f}"


def _summary(shape: str, scored: Sequence[ShapeRow], every: Sequence[ShapeRow]) -> ShapeSummary:
    """scored: prompts whose scores are meant; every: those whose NLL is."""
    pairs = [(row.score, row.full_score) for row in scored if row.score is not None and row.full_score is not None]
    full = fmean(full for _, full in pairs) if pairs else None
    first = every[0]
    return ShapeSummary(
        model=first.model,
        dtype=first.dtype,
        policy=first.policy,
        shape=shape,
        prompts=len(every),
        full=full,
        score=fmean(own for own, _ in pairs) if pairs else None,
        change=_mean([own - full for own, full in pairs]) if pairs else None,
        counts=full is not None and full >= NEAR_ZERO,
        nll=_mean([row.nll - row.full_nll for row in every]),
        reference_speedup=first.reference_speedup,
    )


def _mean(values: Sequence[float]) -> Change:
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
