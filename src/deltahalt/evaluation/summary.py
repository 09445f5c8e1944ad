"""Sweep rows brought down to one line a policy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from deltahalt.evaluation.sweep import SweepRow
from deltahalt.markdown import table


@dataclass(frozen=True)
class PolicySummary:
    """A policy over many samples.

    exact, full_exact: share of answers that greedy decoding gives whole. nll_change: mean increase in negative
    log-likelihood over the full model, nats a token. agreement: mean share of the full model's own answer that stays.
    speedup: mean true-FLOPs ratio; reference_speedup: of the schedule on Qwen2.5-7B's shape at 16K.
    """

    policy: str
    samples: int
    exact: float
    full_exact: float
    nll_change: float
    agreement: float
    speedup: float
    reference_speedup: float


def summarize(rows: Iterable[SweepRow]) -> list[PolicySummary]:
    """One summary a policy, slowest first."""
    by_policy = groupby(sorted(rows, key=lambda row: row.policy), key=lambda row: row.policy)
    summaries = [_summary(policy, list(group)) for policy, group in by_policy]
    return sorted(summaries, key=lambda summary: summary.reference_speedup)


def markdown(rows: Sequence[SweepRow]) -> str:
    """A Markdown table: a line a policy, slowest first; for each task the share of exact answers and the NLL change."""
    tasks = sorted({row.task for row in rows})
    columns: dict[str, list[str]] = {head: [] for head in ("policy", "speedup", *tasks)}
    for summary in summarize(rows):
        own = [row for row in rows if row.policy == summary.policy]
        columns["policy"].append(f"`{summary.policy}`")
        columns["speedup"].append(f"{summary.reference_speedup:.2f}x")
        for name in tasks:
            task = _summary(summary.policy, [row for row in own if row.task == name])
            columns[name].append(f"{task.exact:.2f}, {task.nll_change:+.2f}")
    return table(columns)


def _summary(policy: str, rows: list[SweepRow]) -> PolicySummary:
    return PolicySummary(
        policy=policy,
        samples=len(rows),
        exact=fmean(row.exact for row in rows),
        full_exact=fmean(row.full_exact for row in rows),
        nll_change=fmean(row.nll - row.full_nll for row in rows),
        agreement=fmean(row.agreement for row in rows),
        speedup=fmean(row.speedup for row in rows),
        reference_speedup=rows[0].reference_speedup,
    )
