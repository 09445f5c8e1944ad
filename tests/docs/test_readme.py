"""The README's commands and code run; figures in prose, and tables made by hand, are those of the committed rows."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main
from rich.console import Console

from deltahalt import cli, parse_policy
from deltahalt.answering.ask import Answer
from deltahalt.answering.demo import FACT
from deltahalt.cli.answer_table import show_answers
from deltahalt.flops import KNOWN_SHAPES, dense_loads, policy_loads, true_flops
from deltahalt.lab.bench.row import BenchRow
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.evaluation.pictures.table import adr, full_of
from deltahalt.lab.rows.base import read_rows
from deltahalt.lab.rows.eval import EvalRow
from deltahalt.profile import shipped
from helpers.loads import with_exit
from tools import page_tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split("  #")[0])
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", [words for words in COMMANDS if words[0] == "deltahalt"], ids=" ".join)
def test_a_deltahalt_command_is_one_that_exists(command: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    context = group.make_context("deltahalt", command[1:])
    name, subcommand, rest = group.resolve_command(context, command[1:])  # type: ignore[attr-defined]
    assert subcommand is not None
    subcommand.make_context(name, rest).close()  # raises for an unknown option


@pytest.mark.parametrize("command", [words for words in COMMANDS if words[0] == "make"], ids=" ".join)
def test_a_make_target_exists(command: list[str]) -> None:
    subprocess.run([*command, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_python_example_runs(tiny_folder: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import torch.*?)```", README, re.DOTALL)
    (tmp_path / "report.txt").write_text("It was signed in the spring, by the harbour master. " * 12)
    example = example.replace("Qwen/Qwen2.5-7B-Instruct", str(tiny_folder))
    example = example.replace("report.txt", str(tmp_path / "report.txt"))
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    report = names["halted"].report  # type: ignore[attr-defined]
    assert report.lengths[0][-2] < report.lengths[0][0]


def test_the_demo_s_output_is_what_its_policy_saves_save_for_times(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds are taken from the paste; all else follows from its prompt's length and the profile of the model."""
    (paste,) = re.findall(r"```\n(prompt of .*?)\n```", README, re.DOTALL)
    tokens = int(re.match(r"prompt of ([\d,]+)", paste)[1].replace(",", ""))
    seconds = [re.findall(r"(\d+\.\d\d)(?= | \()", line) for line in paste.splitlines() if "seconds" in line]
    shape = KNOWN_SHAPES["smollm2-135m"]
    entry = 2 * shape.kv_heads * shape.head_dim * 4  # bytes of K and V of one token in one layer
    profile = next(profile for profile in shipped() if profile.model == "smollm2-135m")
    halted = with_exit(policy_loads(parse_policy(profile.choices[0].policy), shape.layers, tokens))
    answers = {
        name: Answer(
            text=FACT,
            prompt_tokens=tokens,
            new_tokens=25,
            lengths=tuple(load.attended for load in loads),
            prefill_seconds=float(prefill),
            decode_seconds=float(decode),
            flops=true_flops(shape, loads, tokens),
            cache_bytes=sum(load.attended + load.kv_only_tokens for load in loads) * entry,
        )
        for name, loads, prefill, decode in zip(
            ("full model", "auto"), (dense_loads(shape.layers, tokens), halted), *seconds, strict=True
        )
    }
    show_answers(Console(width=len(paste.splitlines()[1])), answers)
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(shown) == paste, "paste: make demo"


def numbers(text: str) -> set[str]:
    """Every number in a text, with its standard error where it has one."""
    return set(re.findall(r"[-+]?\d+\.\d+(?: ± \d+\.\d+)?", re.sub(r"\s+", " ", text)))


def section(page: str, heading: str) -> str:
    """The part of a page under a heading, up to the next heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]


def test_what_table_2_shows_is_what_the_committed_rows_say() -> None:
    written = numbers(section("docs/evaluate.md", "### What Table 2 shows here"))
    files = [ROOT / "results" / f"eval-shared-{model}.jsonl" for model in ("smollm2-135m", "qwen2.5-coder-0.5b")]
    rows = [row for file in files for row in read_rows(file, EvalRow)]
    full = {(row.model, row.task, row.metric): row for row in rows if row.policy == "dense"}
    wanted = {
        f"{row.value:.3f} ± {row.stderr:.3f}"
        for (_, task, metric), row in full.items()
        if metric == "rouge_l" and task in {"loogle_shortdep_qa", "loogle_longdep_qa"}
    }
    for task in ("shortdep_qa", "longdep_qa", "longdep_summarization"):
        own = [row.stderr or 0.0 for row in rows if (row.task, row.metric) == (f"loogle_{task}", "rouge_l")]
        wanted |= {f"{min(own):.3f}", f"{max(own):.3f}"}
    apart = [
        abs(row.value - whole.value) / math.hypot(row.stderr, whole.stderr)
        for row in rows
        if (whole := full.get((row.model, row.task, row.metric))) and row.stderr and whole.stderr
    ]
    assert wanted | {f"{max(apart):.1f}"} <= written
    assert {row.value for row in rows if row.task == "loogle_shortdep_cloze"} == {0.0}


def test_what_longbench_shows_is_what_the_committed_rows_say() -> None:
    def means(name: str) -> dict[str, dict[str, str]]:
        heads, _, *lines = page_tables.means_table(name).splitlines()
        head, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in (heads, *lines)]
        return {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}

    written = section("README.md", "## Results so far")
    large = means("eval-longbench-qwen2.5-coder-1.5b")
    full = large["full model"]
    assert (full["tasks"], full["samples"]) == ("9", "96")
    lost = {large[method]["beside the full model"].removeprefix("-") for method in ("former auto", "DASH")}
    assert lost | {full["mean score"].split(" ")[0]} <= numbers(written)


def test_what_is_lost_on_shapes_is_what_the_committed_rows_say() -> None:
    written = section("README.md", "## Results so far")
    lines = page_tables.TABLES["shapes"]("shapes-qwen2.5-coder-1.5b").splitlines()
    heads, change = ([cell.strip() for cell in line[1:-1].split("|")] for line in (lines[0], lines[-2]))
    lost = dict(zip(heads, change, strict=True))
    heads = ("`auto` 1.7x", "`auto:2.5` 2.5x", "`bm25` 1.7x", "`bm25` 2.5x")
    changes = [map(float, lost[head].split(" ± ")) for head in heads]
    words = [f"{mean:+.0f} ± {error:.0f} %" for mean, error in changes]
    at_once = "The share of right answers changes by {} with `auto` at 1.7x and by {} at 2.5x, with BM25 by {} and {}."
    assert at_once.format(*words) in " ".join(written.split())


def test_every_picture_of_rows_is_drawn_by_one_command_of_the_docs() -> None:
    written = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md")))
    command = r"^deltahalt plot (results/\S+\.jsonl(?:\.gz)?) (?:--figure \S+ )?--out (docs/\S+\.svg)$"
    drawn = re.findall(command, written, re.MULTILINE)
    assert sorted(out for _, out in drawn) == sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.svg"))
    assert all((ROOT / rows).is_file() for rows, _ in drawn)


@pytest.mark.parametrize(
    ("page", "heading"),
    [("README.md", "## Results so far"), ("docs/vision-accuracy.md", "# Accuracy on fewer visual tokens")],
)
def test_what_images_keep_is_what_the_committed_rows_say(page: str, heading: str) -> None:
    rows = read_rows(ROOT / "results" / "vision-small-vlm.jsonl", VisionRow)
    written = numbers(section(page, heading))
    for method in ("window-attention:heads=max,kernel=1,start=4", "dash", "random"):
        own = {row.retain: row for row in rows if row.method == method}
        assert {f"{adr(own[share], full_of(own[share], rows)):.1f}" for share in (0.25, 0.111)} <= written


def test_what_auto_answers_about_pictures_is_what_the_committed_rows_say() -> None:
    written, _, _ = section("docs/vision-accuracy.md", "## `auto` on pictures").partition("<!-- table")
    tried = read_rows(ROOT / "results" / "vision-budget-small-vlm.jsonl", VisionRow)
    rows = read_rows(ROOT / "results" / "vision-auto-small-vlm.jsonl.gz", VisionRow)
    chunks = "window-attention:heads=max,boundary=attention,start=1,ahead=10,chunk=64,"
    told = [row for row in rows if row.method in ("full model", "auto", f"{chunks}pruning_ratio=0.385")]
    told += [row for row in tried if row.method.startswith(chunks)]
    assert {f"{100 * sum(row.by_picture) / sum(row.asked.values()):.1f}" for row in told} - {"0.0"} <= numbers(written)
    assert all(f"{100 * row.flops:.0f} % of the FLOPs" in written for row in told if row.flops < 1)


def test_what_a_look_ahead_costs_is_what_the_committed_rows_say() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    rows = read_rows(ROOT / "results" / "bench-ahead-h100.jsonl", BenchRow)
    for tokens in {row.prompt for row in rows}:
        gains = " | ".join(f"{row.gain.prefill:.2f}x" for row in rows if row.prompt == tokens)
        assert f"| {tokens:,} | {gains} |" in page
