"""Write the tables of README.md and docs/ that come of committed rows.

usage: page_tables.py

A page holds a table between `<!-- table: KIND [ROWS] -->` and `<!-- /table -->`; ROWS is a file in results/, without
`.jsonl`. Kinds: `rows`, all of a bench, evaluation or sweep; `frontier`, those of a sweep whose policies none beats;
`means`, the mean over an evaluation's tasks, by method; `new-lengths`, those of new_lengths.py; `profiles`, what
calibration chose; `auto`, what its first choices keep; `reached`, how the best policies stand to what was aimed at.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from briefly import brief
from new_lengths import NewLengthsRow
from reached import auto_table, reached_table
from results_page import FULL, by_method

from deltahalt.bench.row import BenchRow
from deltahalt.evaluation.sweep import SweepRow, read_sweep
from deltahalt.figures.comparison import on_frontier
from deltahalt.harness.rows import EvalRow, paired
from deltahalt.harness.table import setting
from deltahalt.markdown import table
from deltahalt.profile import shipped
from deltahalt.rows import read_rows
from deltahalt.tables import markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
MARKED = re.compile(r"(<!-- table: (\S+) ?(\S*) -->\n).*?(<!-- /table -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(page: str) -> str:
    """The page with its tables written anew. Raises KeyError for an unknown kind, and what reading rows raises."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](found[3])}\n\n{found[4]}", page)


def rows_table(name: str) -> str:
    """All rows of a file in results/, which are of policies."""
    rows: list[Any] = read_rows(RESULTS / f"{name}.jsonl", BenchRow, EvalRow, SweepRow)
    return brief(markdown(rows), (row.policy for row in rows))


def frontier_table(name: str) -> str:
    """The rows of a file of sweep rows whose policies none beats."""
    rows = on_frontier(read_sweep(RESULTS / f"{name}.jsonl"))
    return brief(markdown(rows), (row.policy for row in rows))


def means_table(name: str) -> str:
    """Mean score of each method over those tasks of a file of evaluation rows that all of its methods have rows of."""
    by_task = [
        (one.method, {task: row for (task, metric), row in one.rows.items() if metric == "score"})
        for one in by_method(read_rows(RESULTS / f"{name}.jsonl", EvalRow))
    ]
    shared = set.intersection(*(set(rows) for _, rows in by_task))
    scores = {method: [rows[task] for task in sorted(shared)] for method, rows in by_task}
    errors = [100 * math.hypot(*(row.stderr or 0 for row in rows)) / len(rows) for rows in scores.values()]
    return table(
        {
            "method": list(scores),
            "tasks": [f"{len(shared)}" for _ in scores],
            "samples": [f"{sum(row.samples for row in rows)}" for rows in scores.values()],
            "mean score": [
                f"{100 * fmean(row.value for row in rows):.1f} ± {error:.1f}"
                for rows, error in zip(scores.values(), errors, strict=True)
            ],
            "beside the full model": [_beside(rows, scores[FULL]) for rows in scores.values()],
        }
    )


def _beside(rows: Sequence[EvalRow], full: Sequence[EvalRow]) -> str:
    """Mean difference over tasks; with its standard error where rows tell samples apart and ran alike."""
    shown = f"{100 * fmean(row.value - other.value for row, other in zip(rows, full, strict=True)):+.1f}"
    alike = [(row, other) for row, other in zip(rows, full, strict=True) if setting(row) == setting(other)]
    apart = [paired(row, other) for row, other in alike]
    known = [one[1] for one in apart if one is not None]
    if rows == full or len(known) < len(rows):
        return shown
    return f"{shown} ± {100 * math.hypot(*known) / len(rows):.1f}"


def new_lengths_table(name: str) -> str:
    """Prefill, and each token after it, with cuDNN as PyTorch prefers it and without, on lengths not met before."""
    found: dict[tuple[int, str], list[NewLengthsRow]] = {}
    for row in read_rows(RESULTS / f"{name}.jsonl", NewLengthsRow):
        found.setdefault((row.prompt, row.policy), []).append(row)
    pairs = [sorted(rows, key=lambda row: len(row.attention)) for rows in found.values()]
    shown = table(
        {
            "prompt": [f"{prompt:,}" for prompt, _ in found],
            "policy": [f"`{policy}`" for _, policy in found],
            "prefill s, cuDNN first": [f"{first.prefill:.3f}" for first, _ in pairs],
            "without": [f"{without.prefill:.3f}" for _, without in pairs],
            "ms a token, cuDNN first": [f"{1000 * first.token:.1f}" for first, _ in pairs],
            "without it": [f"{1000 * without.token:.1f}" for _, without in pairs],
        }
    )
    return brief(shown, (policy for _, policy in found))


def profiles_table() -> str:
    """The choices of the shipped profiles, with what calibration saw."""
    choices = [(profile, choice) for profile in shipped() for choice in profile.choices]
    shown = table(
        {
            "model": [profile.model + (", query-free" if profile.query_free else "") for profile, _ in choices],
            "policy": [f"`{choice.policy}`" for _, choice in choices],
            "speedup": [f"{choice.speedup:.2f}x" for _, choice in choices],
            "NLL change": [f"{choice.loss:+.3f}" for _, choice in choices],
            "same answers": [f"{choice.exact:.2f}" for _, choice in choices],
        }
    )
    return brief(shown, (choice.policy for _, choice in choices))


TABLES: dict[str, Callable[[str], str]] = {
    "rows": rows_table,
    "frontier": frontier_table,
    "means": means_table,
    "new-lengths": new_lengths_table,
    "profiles": lambda _: profiles_table(),
    "auto": lambda _: auto_table(),
    "reached": lambda _: reached_table(),
}


if __name__ == "__main__":
    for file in pages():
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
