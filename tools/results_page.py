"""Write docs/lab/results.md from the committed rows and the paper's numbers.

usage: python -m tools.results_page > docs/lab/results.md

Rows of `deltahalt bench` are in results/prefill-*.jsonl and bench-*.jsonl, rows of `deltahalt eval` in eval-*.jsonl,
and in smoke-*.jsonl those of `make eval-smoke`, which are of no benchmark and in no table of the paper. Those of
eval-shared-*.jsonl ran beside each other on one machine: they give scores, and no efficiency.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from deltahalt import parse_policy
from deltahalt.flops import KNOWN_SHAPES, savings
from deltahalt.lab.figures.tables import KINDS, markdown
from deltahalt.lab.harness.table import EFFICIENCY, setting
from deltahalt.lab.rows.base import read_rows
from deltahalt.lab.rows.eval import EvalRow, Spent
from deltahalt.lab.rows.markdown import table
from deltahalt.profile import shipped
from tools.briefly import brief
from tools.paper_tables import PAPER

RESULTS = Path(__file__).parents[1] / "results"
FULL = "full model"
FORMER = {"former auto": "max-sim"}  # what profiles chose when its rows were measured
HEAD = """# Results

`make results` writes this page from the rows in `results/` and from the paper's numbers in `tools/paper.json`.
Columns are explained in [bench](../bench.md) and [evaluate](../evaluate.md). Lines marked *paper* are the paper's, of
Qwen2.5-7B-Instruct-1M; the others were measured with the same methods on the model named. Many policies on one model:
[journal](journal.md).

- Times in *-busy.jsonl are from a machine that other work kept busy, and uncertain ([how much](../bench.md)).
- Rows of eval-shared-*.jsonl are from processes that shared a machine: they give scores, not efficiency.
- Rows of smoke-*.jsonl are from `make eval-smoke`: a few samples of our own, not a benchmark.
- What was measured in the paper's tables is from small models and few samples. It does not test the paper's numbers.
  What the scores show of the methods: [Table 1](../evaluate.md#what-table-1-shows-here),
  [Table 2](../evaluate.md#what-table-2-shows-here).
- A cell is empty where a run was cut off by time, or needs what was not available.
- *LongBench* after a model: LongBench's samples in place of LongBench-E's, by the same prompts and metrics.
- LLMLingua2 ran with a stand-in encoder, which is named after the model
  ([baselines](../baselines.md#an-encoder-without-a-hub)). BERTScore uses a small encoder, all-MiniLM-L6-v2, so its
  values do not compare with the paper's.
- FastKV, GemFilter and `auto`, which is what the model's profile chooses, are not in the paper's tables. `former auto`
  is `max-sim`, which the profiles chose when its rows were measured."""


@dataclass(frozen=True)
class Line:
    """A method in one of the paper's tables. figures: None where there is none.

    model: what ran it, and the method's own encoder if it has one; or the paper. errors: the figures' standard errors.
    """

    method: str
    model: str
    samples: str
    figures: list[float | None]
    errors: Sequence[float | None] = ()


@dataclass(frozen=True)
class Measured:
    """The eval rows of one model under one method, by the table's name of the task, and metric.

    model: with the benchmark behind it, where that is LongBench in place of LongBench-E.
    """

    method: str
    model: str
    rows: dict[tuple[str, str], EvalRow]

    def line(self, wanted: Sequence[tuple[str, str]], figures: list[float | None]) -> Line:
        """The line of these figures, which come from the `wanted` rows."""
        counts = sorted({self.rows[key].samples for key in wanted if key in self.rows})
        _, _, encoder = next(iter(self.rows.values())).policy.partition("encoder=")
        model = f"{self.model}, {Path(encoder).name}" if encoder else self.model
        return Line(self.method, model, "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))), figures)


def page(files: Sequence[Path]) -> str:
    """The page, from files of rows."""
    efficiency = [file for file in files if file.name.startswith(("prefill-", "bench-"))]
    evaluations = [file for file in files if file not in efficiency]
    benchmarks = [file for file in evaluations if not file.name.startswith("smoke-")]
    listed = [file for file in evaluations if "-longbench-" not in file.name]  # of which Table 1 has all
    evaluated = [row for file in benchmarks for row in rows_of(file)]
    measured, full = (
        by_method(evaluated),
        {setting(row): row for row in evaluated if row.policy == PAPER["methods"][FULL]},
    )
    parts = [HEAD, "## Efficiency", *_listed(efficiency)]
    for name, content in {
        "table1": score_table(PAPER["table1"], measured),
        "table2": score_table(PAPER["table2"], measured),
        "table3": flops_table(PAPER["table3"]),
        "table4": efficiency_table(PAPER["table4"], measured, full),
    }.items():
        parts += [f"## Table {name[-1]}: {PAPER[name]['title']}", *PAPER[name].get("notes", ()), content]
    return "\n\n".join([*parts, "## Evaluated", *_listed(listed)]) + "\n"


def rows_of(file: Path) -> list[Any]:
    """The rows of a file; those of processes that ran beside each other without what they took."""
    rows: list[Any] = read_rows(file, *KINDS)
    return [replace(row, **vars(Spent())) for row in rows] if file.name.startswith("eval-shared-") else rows


def by_method(rows: Iterable[EvalRow]) -> list[Measured]:
    """Rows of the methods that tables compare, sorted by method and model; of a row measured twice, the latest."""
    chosen = {profile.model: profile.choose(None) for profile in shipped() if not profile.query_free}
    found: dict[tuple[str, str], dict[tuple[str, str], EvalRow]] = {}
    for row in rows:
        policy = "auto" if row.policy == chosen.get(row.model) else row.policy
        longbench = row.task.startswith("longbench_") and not row.task.endswith("_e")
        model, task = (f"{row.model}, LongBench", f"{row.task}_e") if longbench else (row.model, row.task)
        found.setdefault((policy, model), {})[task, row.metric] = row
    return [
        Measured(method, model, own)
        for method, wanted in (PAPER["methods"] | PAPER["beside"] | FORMER).items()
        for (policy, model), own in found.items()
        if policy == wanted or policy.startswith((f"{wanted}:encoder=", f"{FORMER.get(method)}:"))
    ]


def score_table(paper: dict[str, Any], measured: Sequence[Measured]) -> str:
    """Scores: the paper's methods, then who else measured them, with standard errors where there are."""
    lines = [Line(method, "*paper*", "", scores) for method, scores in paper["paper"].items()]
    columns = {head: ((task, metric), scale) for head, (task, metric, scale) in paper["columns"].items()}
    for one in measured:
        found = [(one.rows.get(key), scale) for key, scale in columns.values()]
        scores = [None if row is None else row.value * scale for row, scale in found]
        errors = [None if row is None or row.stderr is None else row.stderr * scale for row, scale in found]
        if any(score is not None for score in scores):
            lines.append(replace(one.line([key for key, _ in columns.values()], scores), errors=errors))
    shown = {
        head: [_score(line, number, ".3f" if scale == 1 else ".2f") for line in lines]
        for number, (head, (_, scale)) in enumerate(columns.items())
    }
    known = [[figure for figure in line.figures if figure is not None] for line in lines]
    means = [
        f"{fmean(own):.2f}" if len(own) == len(line.figures) else "" for own, line in zip(known, lines, strict=True)
    ]
    return _table(lines, shown | {"mean": means})


def flops_table(paper: dict[str, Any]) -> str:
    """Prompt by prompt: the paper's proxy, as printed and as counted here, and the true count."""
    policy = parse_policy(PAPER["methods"]["DASH"])
    counts = [savings(KNOWN_SHAPES["qwen2.5-7b"], policy, length) for length in paper["lengths"]]
    return table(
        {
            "prompt": [f"{count.prompt:,}" for count in counts],
            "kept, *paper*": [f"{kept:,}" for kept, _, _ in paper["paper"]],
            "kept": [f"{count.kept:,}" for count in counts],
            "saved, *paper*": [f"{saved:.2f} %" for _, saved, _ in paper["paper"]],
            "saved": [f"{100 * count.paper_reduction:.2f} %" for count in counts],
            "speedup, *paper*": [f"{speedup:.2f}x" for _, _, speedup in paper["paper"]],
            "speedup": [f"{count.paper_speedup:.2f}x" for count in counts],
            "true FLOPs": [f"{count.true_speedup:.2f}x" for count in counts],
        }
    )


def efficiency_table(paper: dict[str, Any], measured: Sequence[Measured], full: dict[Any, EvalRow]) -> str:
    """Score and efficiency for each group of tasks; measured where all of a group's tasks were.

    full: the full model's rows, by what their costs are compared by.
    """
    named: list[tuple[str, Line]] = []
    for name, group in paper["groups"].items():
        named += [(name, Line(method, "*paper*", "", figures)) for method, figures in group["paper"].items()]
        named += [(name, line) for one in measured if (line := _relative(one, group["tasks"], full))]
    lines = [line for _, line in named]
    shown = {
        head: [_shown(line.figures[number], ".2f", "x" if number else "") for line in lines]
        for number, head in enumerate(("score", *EFFICIENCY))
    }
    return _table(lines, {"tasks": [name for name, _ in named]}, shown)


def _relative(one: Measured, tasks: Sequence[str], full: dict[Any, EvalRow]) -> Line | None:
    """One group of Table 4, against the full model's rows of the same run; None where a task or its times lack."""
    keys = [(task, "score") for task in tasks]
    rows = [one.rows[key] for key in keys if key in one.rows]
    if len(rows) < len(keys) or not all(row.prefill_seconds for row in rows):
        return None
    references = [full[setting(row)] for row in rows if setting(row) in full]
    gains: list[float | None] = [None] * len(EFFICIENCY)
    if len(references) == len(rows):
        reference, own = _together(references), _together(rows)
        costs = [(figure(reference), figure(own)) for figure in EFFICIENCY.values()]
        gains = [full_cost / cost if full_cost and cost else None for full_cost, cost in costs]
    return one.line(keys, [100 * fmean(row.value for row in rows), *gains])


def _together(rows: Sequence[EvalRow]) -> EvalRow:
    """One row that took what all of them took, and the most memory of any."""
    spent: dict[str, Any] = {
        name: sum(getattr(row, name) for row in rows)
        for name in ("prefill_seconds", "generation_seconds", "prompt_tokens", "new_tokens")
    }
    peaks = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    return replace(rows[0], peak_bytes=max(peaks, default=None), **spent)


def _table(lines: Sequence[Line], *columns: dict[str, list[str]]) -> str:
    """The lines with these columns, and what names them; a column without any figure is left out."""
    names = {
        "method": [line.method for line in lines],
        "model": [line.model for line in lines],
        "samples": [line.samples for line in lines],
    }
    *before, last = columns
    whole = {head: cells for part in (*before, names, last) for head, cells in part.items()}
    return table({head: cells for head, cells in whole.items() if any(cells)})


def _score(line: Line, number: int, style: str) -> str:
    error = line.errors[number] if line.errors else None
    return _shown(line.figures[number], style) + (f" ± {error:{style}}" if error else "")


def _shown(figure: float | None, style: str, unit: str = "") -> str:
    return "" if figure is None else f"{figure:{style}}{unit}"


def _listed(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        yield f"`{file.name}`:"
        rows = rows_of(file)
        yield brief(markdown(rows), (row.policy for row in rows))


def committed() -> list[Path]:
    """The files of rows that the page is made of."""
    return [file for kind in ("prefill", "bench", "eval", "smoke") for file in sorted(RESULTS.glob(f"{kind}-*.jsonl*"))]


if __name__ == "__main__":
    print(page(committed()), end="")  # noqa: T201
