"""Sweep rows summarized to one line per policy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.rows.markdown import differing, table

# The fields that the rows of one line have in common: the model and the settings.
subject = attrgetter("model", "halted_kv", "query_free", "max_answer_tokens", "dtype")

# Table heads of the two true-FLOPs ratios: `reference_speedup`, and `speedup` on the model and prompts measured.
SPEEDUP, OWN_SPEEDUP = "speedup", "own speedup"

SUBJECT: dict[str, Callable[[SweepRow], str]] = {
    "model": lambda row: row.model,
    "halted K/V": lambda row: row.halted_kv,
    "query-free": lambda row: "yes" if row.query_free else "no",
    "answer tokens": lambda row: f"{row.max_answer_tokens}",
    "dtype": lambda row: row.dtype,
}


@dataclass(frozen=True)
class PolicySummary:
    """A policy's means over many samples, on one model and with the same settings.

    exact, full_exact: share of answers that greedy decoding gives whole, under the policy and by the full model.
    nll_change: increase in negative log-likelihood over the full model, nats per token. agreement: share of the full
    model's own answer that stays the same. speedup: true-FLOPs ratio, full model to policy. reference_speedup: the same
    for the schedule on Qwen2.5-7B's shape and a prompt of 16,384 tokens.
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
    """Return a summary for each model, settings and policy, slowest first. The last row of a sample counts."""
    return [_summary(own) for own in _by_line(rows)]


def with_formats(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """Return the rows; one without a dtype gets that of the others of its model and settings, if they have just one."""
    rows = list(rows)
    named: dict[object, set[str]] = {}
    for row in rows:
        named.setdefault(subject(replace(row, dtype="")), set()).update({row.dtype} - {""})
    only = {like: next(iter(formats)) for like, formats in named.items() if len(formats) == 1}
    return [row if row.dtype else replace(row, dtype=only.get(subject(row), "")) for row in rows]


def markdown(rows: Sequence[SweepRow]) -> str:
    """Return a Markdown table of lines as in `summarize`: for each task the share of exact answers and the NLL change.

    Columns for model, settings and number of samples appear only if lines differ in them. The cell of a task without
    rows is empty.
    """
    lines = _by_line(rows)
    return table(
        {
            **differing({head: [cell(own[0]) for own in lines] for head, cell in SUBJECT.items()}),
            "policy": [f"`{own[0].policy}`" for own in lines],
            SPEEDUP: [f"{own[0].reference_speedup:.2f}x" for own in lines],
            **differing({"samples": [f"{len(own)}" for own in lines]}),
            **{task: [_cell(own, task) for own in lines] for task in sorted({row.task for row in rows})},
        }
    )


def _by_line(rows: Iterable[SweepRow]) -> list[list[SweepRow]]:
    """Return the rows of each line, one for each sample."""
    lines: dict[object, dict[str, SweepRow]] = {}
    for row in with_formats(rows):
        lines.setdefault((subject(row), row.policy), {})[row.sample] = row
    found = [list(by_sample.values()) for by_sample in lines.values()]
    return sorted(found, key=lambda own: (subject(own[0]), own[0].reference_speedup, own[0].policy))


def _cell(rows: list[SweepRow], task: str) -> str:
    own = [row for row in rows if row.task == task]
    if not own:
        return ""
    summary = _summary(own)
    return f"{summary.exact:.2f}, {summary.nll_change:+.2f}"


def _summary(rows: list[SweepRow]) -> PolicySummary:
    return PolicySummary(
        policy=rows[0].policy,
        samples=len(rows),
        exact=fmean(row.exact for row in rows),
        full_exact=fmean(row.full_exact for row in rows),
        nll_change=fmean(row.nll - row.full_nll for row in rows),
        agreement=fmean(row.agreement for row in rows),
        speedup=fmean(row.speedup for row in rows),
        reference_speedup=rows[0].reference_speedup,
    )
