"""Run what a table of the paper compares on images, with lmms-eval, and print it beside the paper's numbers.

usage: python -m tools.vision_tables TABLE [--model MODEL] [--data FOLDER] [--out FOLDER] [--methods METHOD,...]
                                     [OPTION ...]

TABLE is table5 (fewer visual tokens), table6 (ViT and language model) or table7 (efficiency on MMBench-EN). --model: of
Qwen2-VL's architecture, Qwen/Qwen2-VL-7B-Instruct if not given. --data: see docs/vision-evaluate.md; without it
lmms-eval downloads. --out: where results are kept, build/tables if not given; whatever is there is in the printed
table. --methods: only these of the table's, such as "full model,DASH". OPTIONs are those of lmms-eval, such as --limit
and --batch_size. A method that fails is named at the end, and the others run.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deltahalt.lab.rows.markdown import table as markdown
from tools.paper_tables import PAPER, choose, words

TABLES = ["table5", "table6", "table7"]
FULL = "full model"
MODEL = "deltahalt_qwen2_vl"  # as lmms-eval knows it
EFFICIENCY = ["latency", "prefill", "TFLOPs", "K/V, MB"]  # of Table 7, before its scores

Results = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One line of a table. arguments: of the model, for lmms-eval. paper: what the paper has in this line."""

    group: str
    method: str
    arguments: str
    paper: list[float]

    def folder(self, out: Path) -> Path:
        """Where its results are kept."""
        return out / "-".join(re.findall(r"[\w.+]+", f"{self.group} {self.method}"))


def runs(name: str, only: Sequence[str] = ()) -> list[Run]:
    """The lines of a table, the full model's first; of these methods only, or all.

    Raises ValueError for a method that the table has not.
    """
    table = PAPER[name]
    lines = [Run("", FULL, table["full run"], table[FULL])]
    for group, content in table["groups"].items():
        lines += [Run(group, method, content["runs"][method], row) for method, row in content["paper"].items()]
    wanted = choose(name, list(dict.fromkeys(line.method for line in lines)), only)
    return [line for line in lines if line.method in wanted]


def command(name: str, run: Run, model: str, out: Path, options: Sequence[str]) -> list[str]:
    """What runs one line, after `python`."""
    tasks = ",".join(task for task, _, _ in PAPER[name]["columns"].values())
    given = ["--model", MODEL, "--model_args", f"pretrained={model},{run.arguments}", "--tasks", tasks]
    return ["-m", "lmms_eval", *given, "--output_path", str(run.folder(out)), *options]


def latest(folder: Path) -> Results | None:
    """The results that lmms-eval wrote last into a folder."""
    files = folder.glob("*/[0-9]*_results.json")  # MODEL/DATE_TIME_results.json
    last = max(files, key=lambda file: file.name, default=None)
    return None if last is None else json.loads(last.read_text(encoding="utf-8"))


def scores(name: str, results: Results) -> list[float | None]:
    """The scores of a table's columns; None where the task was not run."""
    own = results["results"]
    return [
        scale * sum(own[task][f"{metric},none"] for metric in metrics) if task in own else None
        for task, metrics, scale in PAPER[name]["columns"].values()
    ]


def efficiency(results: Results, full: Results | None) -> list[float | None]:
    """Table 7's first columns: two latencies, % of the full model's, and TFLOPs and MB of a prompt."""
    took = results["throughput"]
    latencies: list[float | None] = [None, None]
    if full is not None:
        latencies = [100 * took[key] / full["throughput"][key] for key in ("avg_latency", "avg_prefill_seconds")]
    return [*latencies, took["avg_llm_prefill_tflops"] + took["avg_vit_tflops"], took["avg_kv_cache_mb"]]


def decline(row: Sequence[float | None], full: Sequence[float | None]) -> float | None:
    """ADR: the mean over benchmarks of the score as a share of the full model's, %; None where one is missing."""
    pairs = list(zip(row, full, strict=True))
    if any(score is None or not whole for score, whole in pairs):
        return None
    return 100 * fmean(score / whole for score, whole in pairs if score is not None and whole)


def page(name: str, out: Path) -> str:
    """The table in Markdown: the paper's lines, and under each what was measured."""
    lines = runs(name)
    full = latest(lines[0].folder(out))
    shown: list[tuple[Run, str, list[float | None]]] = []
    for line in lines:
        shown.append((line, "*paper*", [*line.paper]))
        results = latest(line.folder(out))
        if results is not None:
            own = efficiency(results, full) if name == "table7" else []
            shown.append((line, "measured", [*own, *scores(name, results)]))
    heads = [*(EFFICIENCY if name == "table7" else []), *PAPER[name]["columns"]]
    columns = {
        "tokens": [line.group for line, _, _ in shown],
        "method": [line.method for line, _, _ in shown],
        "": [source for _, source, _ in shown],
    }
    columns |= {head: [_shown(row[number]) for _, _, row in shown] for number, head in enumerate(heads)}
    if name != "table7":
        whole = {source: row for line, source, row in shown if line.method == FULL}
        columns["ADR"] = [_shown(decline(row, whole[source]) if source in whole else None) for _, source, row in shown]
    return "\n\n".join([f"## Table {name[-1]}: {PAPER[name]['title']}", *PAPER[name]["notes"], markdown(columns)])


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.1f}"


def failing(name: str, given: argparse.Namespace, options: Sequence[str]) -> Iterator[str]:
    """Run the lines one after the other, each printed before; yields the ones that fail."""
    out = given.out.resolve() / name
    model = str(Path(given.model).resolve()) if Path(given.model).is_dir() else given.model
    for run in runs(name, given.methods):
        own = command(name, run, model, out, options)
        print("+ python", shlex.join(own), flush=True)  # noqa: T201
        before = latest(run.folder(out))
        subprocess.run([sys.executable, *own], cwd=given.data, check=False)
        if latest(run.folder(out)) == before:  # lmms-eval exits with 0 after an error, too
            yield f"{run.group} {run.method}".strip()


def main() -> None:
    """Run a table and print it."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--model", default="Qwen/Qwen2-VL-7B-Instruct")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/tables"))
    parser.add_argument("--methods", type=words, default=[])
    given, options = parser.parse_known_args()
    try:
        failed = list(failing(given.table, given, options))
    except ValueError as error:
        parser.error(str(error))
    print(page(given.table, given.out / given.table))  # noqa: T201
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
