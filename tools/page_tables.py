"""Write the tables of README.md and docs/ that come of committed rows.

usage: python -m tools.page_tables

A page holds a table between `<!-- table: KIND [ROWS] -->` and `<!-- /table -->`; ROWS is a file in results/, without
`.jsonl` or `.jsonl.gz`. Kinds of one file: `rows`, all of a bench, evaluation, sweep or `embed`; `frontier`, those of a
sweep that no other policy beats; `means`, the mean over an evaluation's tasks, by method; `speed`, a few figures of a
bench, and `short-speed`, few rows of it; `shapes`, right answers by shape and policy; `real`, NLL by policy and place
of the question; `embeddings`, what embeddings lose, without times; `adr`, `pictures`, `beside` and `images`, of methods
on images. `profiles`, of no file, is what calibration chose in the shipped profiles.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from deltahalt.lab.bench.row import BenchRow
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.evaluation.pictures.table import beside
from deltahalt.lab.evaluation.pictures.table import markdown as vision_tables
from deltahalt.lab.evaluation.readout.row import EmbedRow
from deltahalt.lab.evaluation.readout.summary import summarize
from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.evaluation.sweep import read_sweep
from deltahalt.lab.figures.comparison import on_frontier
from deltahalt.lab.figures.tables import KINDS, markdown
from deltahalt.lab.harness.table import setting
from deltahalt.lab.jsonl import read_jsonl
from deltahalt.lab.rows.base import read_rows
from deltahalt.lab.rows.eval import EvalRow, paired
from deltahalt.lab.rows.markdown import table
from deltahalt.profile import shipped
from tools.briefly import brief
from tools.paper_tables import PAPER
from tools.results_page import FULL, by_method, rows_of
from tools.rows_files import rows_file
from tools.shapes_table import real_table, shapes_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SHORT = (16_384, 131_072)  # tokens: prompts of the short table of speed
SCHEDULE = "both-ends:start=2,pruning_ratio={},chunk=64"
RECORD = {  # the methods of `make bench-gpu`, as the short table names them
    SCHEDULE.format(0.425): "`auto`, 1.7x",
    SCHEDULE.format(0.64): "`auto:2.5`",
    "dash": "`dash`",
    "gemfilter:start=13,count=1024,keep_first=0,keep_last=1": "GemFilter",
    "window-attention:start=15,pruning_ratio=0.8,ratio_of=prompt,keep_first=0,keep_last=8,window=8,kernel=7": "FastKV",
}
MARKED = re.compile(r"(<!-- table: (\S+) ?(\S*) -->\n).*?(<!-- /table -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(page: str) -> str:
    """The page with its tables written anew. Raises KeyError for an unknown kind, and what reading rows raises."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](found[3])}\n\n{found[4]}", page)


def rows_table(name: str) -> str:
    """All rows of a file in results/, which are of policies."""
    rows: list[Any] = read_rows(rows_file(RESULTS, name), *KINDS)
    return brief(markdown(rows), (row.policy for row in rows))


def frontier_table(name: str) -> str:
    """The rows of a file of sweep rows whose policies none beats."""
    rows = on_frontier(read_sweep(rows_file(RESULTS, name)))
    return brief(markdown(rows), (row.policy for row in rows))


def means_table(name: str) -> str:
    """Mean score of each method over those tasks of a file of evaluation rows that all of its methods have rows of.

    The full model beside a row is that of the same run, where the file has one.
    """
    rows = rows_of(rows_file(RESULTS, name))
    by_task = {
        one.method: {task: row for (task, metric), row in one.rows.items() if metric == "score"}
        for one in by_method(rows)
    }
    tasks = sorted(set.intersection(*map(set, by_task.values())))
    same_run = {setting(row): row for row in rows if row.policy == PAPER["methods"][FULL]}
    pairs = {
        method: [(own[task], same_run.get(setting(own[task]), by_task[FULL][task])) for task in tasks]
        for method, own in by_task.items()
    }
    shown = {
        "method": list(pairs),
        "tasks": [f"{len(tasks)}" for _ in pairs],
        "samples": [f"{sum(row.samples for row, _ in own)}" for own in pairs.values()],
        "mean score": [_mean([row.value for row, _ in own], [row.stderr for row, _ in own]) for own in pairs.values()],
        "beside the full model": [_beside(own) for own in pairs.values()],
        "prefill": [_prefill(own) for own in pairs.values()],
    }
    return table({head: cells for head, cells in shown.items() if any(cells)})


def _mean(values: Sequence[float], errors: Sequence[float | None], sign: str = "") -> str:
    """The mean of shares, in hundredths; with its standard error unless some are None."""
    mean = f"{100 * fmean(values):{sign}.1f}"
    known = [error for error in errors if error is not None]
    return mean if len(known) < len(values) else f"{mean} ± {100 * math.hypot(*known) / len(values):.1f}"


def _beside(pairs: Sequence[tuple[EvalRow, EvalRow]]) -> str:
    """Mean difference over tasks; with its standard error where rows tell samples apart and ran alike."""
    if all(row is full for row, full in pairs):
        return ""
    apart = [paired(row, full) if setting(row) == setting(full) else None for row, full in pairs]
    return _mean([row.value - full.value for row, full in pairs], [one and one[1] for one in apart], "+")


def _prefill(pairs: Sequence[tuple[EvalRow, EvalRow]]) -> str:
    """How many times less seconds the prefill of all prompts took; empty where runs were not alike or not alone."""
    own, full = (sum(row.prefill_seconds for row in rows) for rows in zip(*pairs, strict=True))
    alike = all(setting(row) == setting(full_row) for row, full_row in pairs)
    return f"{full / own:.2f}x" if own and alike else ""


def speed_table(name: str) -> str:
    """Prefill, bound and K/V by the methods of `make bench-gpu`, from a file of its rows."""
    return _speed(read_rows(rows_file(RESULTS, name), BenchRow))


def short_speed_table(name: str) -> str:
    """The rows of `speed_table` of single prompts of few lengths, by `auto` alone."""
    rows = read_rows(rows_file(RESULTS, name), BenchRow)
    return _speed(
        [row for row in rows if row.batch == 1 and row.prompt in SHORT and RECORD[row.policy].startswith("`auto")]
    )


def _speed(rows: Sequence[BenchRow]) -> str:
    return table(
        {
            "prompt": [f"{row.batch} x {row.prompt:,}" if row.batch > 1 else f"{row.prompt:,}" for row in rows],
            "policy": [RECORD[row.policy] for row in rows],
            "first token, full / halted": [f"{row.full.prefill:.3f} s / {row.halted.prefill:.3f} s" for row in rows],
            "gain": [f"{row.gain.prefill:.2f}x" for row in rows],
            "beside nothing halted": [f"{(1 + row.overhead) * row.gain.prefill:.2f}x" for row in rows],
            "bound": [f"{row.gain.flops:.2f}x" for row in rows],
            "K/V": [f"{row.gain.kv_bytes:.2f}x" for row in rows],
            "peak GB": [_peaks(row) for row in rows],
        }
    )


def _peaks(row: BenchRow) -> str:
    peaks = (row.full.peak_bytes or 0.0, row.halted.peak_bytes or 0.0)
    return " / ".join(f"{peak / 1e9:.1f}" for peak in peaks)


def embeddings_table(name: str) -> str:
    """What embeddings lose by policy, from a file of `embed` on a machine too busy to time it."""
    lines = summarize(read_rows(rows_file(RESULTS, name), EmbedRow))
    shown = table(
        {
            "policy": [f"`{line.policy}`" for line in lines],
            "bound": [f"{line.speedup:.2f}x" for line in lines],
            "cosine": [f"{line.cosine:.4f}" for line in lines],
            "top-10 overlap": [f"{100 * line.overlap:.1f} %" for line in lines],
            "NDCG@10": [f"{line.ndcg:.3f}" for line in lines],
        }
    )
    return brief(shown, (line.policy for line in lines))


def adr_table(name: str) -> str:
    """What methods on images keep of the full model's accuracy, by share of visual tokens."""
    return vision_tables(read_rows(rows_file(RESULTS, name), VisionRow)).split("\n\n")[0]


def pictures_table(name: str) -> str:
    """All figures of methods on images."""
    return vision_tables(read_rows(rows_file(RESULTS, name), VisionRow)).split("\n\n")[1]


def beside_table(name: str) -> str:
    """What methods on images change, question by question."""
    rows = read_rows(rows_file(RESULTS, name), VisionRow)
    return brief(beside(rows), (row.method for row in rows if row.policy))


def images_table(name: str) -> str:
    """What a method on images saves. A script that has left the tree wrote the rows, so they have no type."""
    rows = [row for _, row in read_jsonl(rows_file(RESULTS, name))]
    return table(
        {
            "method": [f"`{row['method']}`" for row in rows],
            "kept": [f"{row['retain']:.0%}" for row in rows],
            "prefill s, full / halted": [f"{row['full_prefill']:.3f} / {row['prefill']:.3f}" for row in rows],
            "prefill, % of full": [f"{100 * row['prefill_share']:.1f}" for row in rows],
            "total, % of full": [f"{100 * row['total_share']:.1f}" for row in rows],
            "new tokens": [f"{row['new_tokens']}" for row in rows],
            "TFLOPs, full / halted": [f"{row['full_tflops']:.1f} / {row['tflops']:.1f}" for row in rows],
            "K/V MB, full / halted": [f"{row['full_kv_mb']:.0f} / {row['kv_mb']:.0f}" for row in rows],
        }
    )


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
    "profiles": lambda _: profiles_table(),
    "embeddings": embeddings_table,
    "real": lambda name: real_table(read_sweep(rows_file(RESULTS, name))),
    "shapes": lambda name: shapes_table(read_rows(rows_file(RESULTS, name), ShapeRow)),
    "speed": speed_table,
    "short-speed": short_speed_table,
    "adr": adr_table,
    "pictures": pictures_table,
    "beside": beside_table,
    "images": images_table,
}


def main() -> None:
    """Write the tables into their pages."""
    argparse.ArgumentParser(usage=__doc__, allow_abbrev=False).parse_args()
    for file in pages():
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
