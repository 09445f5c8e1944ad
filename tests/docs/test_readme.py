"""The README's commands and code run; figures in prose, and tables made by hand, are those of the committed rows."""

import json
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
from deltahalt.lab.evaluation.pictures.table import markdown as vision_tables
from deltahalt.lab.rows.base import read_rows
from deltahalt.lab.rows.eval import EvalRow
from deltahalt.profile import shipped
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
    (tmp_path / "report.txt").write_text("It was signed in the spring, by the harbour master. " * 9)
    example = example.replace("Qwen/Qwen2.5-7B-Instruct", str(tiny_folder))
    example = example.replace("report.txt", str(tmp_path / "report.txt"))
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    report = names["halted"].report  # type: ignore[attr-defined]
    assert report.lengths[0][-1] < report.lengths[0][0]


def test_the_demo_s_output_is_what_its_policy_saves_save_for_times(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds are taken from the paste; all else follows from its prompt's length and the profile of the model."""
    (paste,) = re.findall(r"```\n(prompt of .*?)\n```", README, re.DOTALL)
    tokens = int(re.match(r"prompt of ([\d,]+)", paste)[1].replace(",", ""))
    seconds = [re.findall(r"(\d+\.\d\d)(?= | \()", line) for line in paste.splitlines() if "seconds" in line]
    shape = KNOWN_SHAPES["smollm2-135m"]
    profile = next(profile for profile in shipped() if profile.model == "smollm2-135m")
    halted = policy_loads(parse_policy(profile.choices[0].policy), shape.layers, tokens)
    answers = {
        name: Answer(
            text=FACT,
            prompt_tokens=tokens,
            new_tokens=25,
            lengths=tuple(load.attended for load in loads),
            prefill_seconds=float(prefill),
            decode_seconds=float(decode),
            flops=true_flops(shape, loads, tokens),
            cache_bytes=sum(load.attended for load in loads) * 2 * shape.kv_heads * shape.head_dim * 4,
        )
        for name, loads, prefill, decode in zip(
            ("full model", "auto"), (dense_loads(shape.layers, tokens), halted), *seconds, strict=True
        )
    }
    show_answers(Console(width=len(paste.splitlines()[1])), answers)
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(shown) == paste, "paste: make demo"


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("vision-*.jsonl")), ids=lambda file: file.name)
def test_the_vision_tables_are_those_of_the_committed_rows(file: Path) -> None:
    written = (ROOT / "docs" / "vision-accuracy.md").read_text(encoding="utf-8")
    for table in vision_tables(read_rows(file, VisionRow)).split("\n\n"):
        assert table in written, f"paste: deltahalt report results/{file.name}"


def test_what_table_2_shows_is_what_the_committed_rows_say() -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8"))
    files = [ROOT / "results" / f"eval-shared-{model}.jsonl" for model in ("smollm2-135m", "qwen2.5-coder-0.5b")]
    rows = [row for file in files for row in read_rows(file, EvalRow)]
    full = {(row.model, row.task, row.metric): row for row in rows if row.policy == "dense"}

    def scores(task: str) -> str:
        own = [row for key, row in full.items() if key[1:] == (f"loogle_{task}", "rouge_l")]
        return " and ".join(f"{row.value:.3f} ± {row.stderr:.3f}" for row in own)

    def errors(task: str) -> str:
        own = [row.stderr or 0.0 for row in rows if (row.task, row.metric) == (f"loogle_{task}", "rouge_l")]
        return f"{min(own):.3f} to {max(own):.3f}"

    short, long = scores("shortdep_qa").replace(" and", " (SmolLM2) and"), scores("longdep_qa")
    assert f"ROUGE-L {short} (Qwen2.5-Coder) on short questions, {long} on long ones" in page
    short, long, summaries = (errors(task) for task in ("shortdep_qa", "longdep_qa", "longdep_summarization"))
    assert f"errors are {short} on short, {long} on long questions and {summaries} in summarization" in page
    apart = [
        abs(row.value - whole.value) / math.hypot(row.stderr, whole.stderr)
        for row in rows
        if (whole := full.get((row.model, row.task, row.metric))) and row.stderr and whole.stderr
    ]
    assert f"than {max(apart):.1f} standard errors" in page
    assert {row.value for row in rows if row.task == "loogle_shortdep_cloze"} == {0.0}


def test_what_longbench_shows_is_what_the_committed_rows_say() -> None:
    def means(name: str) -> dict[str, dict[str, str]]:
        heads, _, *lines = page_tables.means_table(name).splitlines()
        head, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in (heads, *lines)]
        return {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}

    def lost(method: str) -> str:
        return large[method]["beside the full model"].removeprefix("-")

    large, small = means("eval-longbench-qwen2.5-coder-1.5b"), means("eval-shared-longbench-qwen2.5-coder-0.5b")
    full, other = large["full model"], {method: cells["mean score"].split(" ")[0] for method, cells in small.items()}
    speed = {method: cells["prefill"] for method, cells in large.items()}
    assert (full["tasks"], small["full model"]["tasks"]) == ("9", "12")
    said = (
        f"On {full['samples']} of LongBench's own samples, nine tasks, the 1.5B model scores {full['mean score']} in "
        f"full. Beside it, sample by sample, `auto` loses {lost('auto')} and prefills in {speed['auto']} less time; "
        f"SnapKV (pr.) {lost('SnapKV (pr.)')} at {speed['SnapKV (pr.)']}, FastV {lost('FastV')} at {speed['FastV']}, "
        f"DASH {lost('DASH')} at {speed['DASH']}, and methods that leave prefill as it is {lost('SnapKV')} (SnapKV) "
        f"and {lost('D3')} (D3). The 0.5B model, on twelve tasks: {other['full model']} in full, {other['auto']} under "
        f"`auto`, {other['FastKV']} under FastKV"
    )
    assert said in re.sub(r"\s+", " ", README)


def test_every_picture_of_rows_is_drawn_by_one_command_of_the_docs() -> None:
    written = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
    command = r"^deltahalt plot (results/\S+\.jsonl) (?:--figure \S+ )?--out (docs/\S+\.svg)$"
    drawn = re.findall(command, written, re.MULTILINE)
    assert sorted(out for _, out in drawn) == sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.svg"))
    assert all((ROOT / rows).is_file() for rows, _ in drawn)


def test_what_images_keep_is_what_the_committed_rows_say() -> None:
    rows = read_rows(ROOT / "results" / "vision-small-vlm.jsonl", VisionRow)

    def kept(method: str) -> list[str]:
        own = {row.retain: row for row in rows if row.method == method}
        return [f"{adr(own[share], full_of(own[share], rows)):.1f}" for share in (0.25, 0.111)]

    said = re.sub(r"\s+", " ", README[README.index("On images, a small Qwen2-VL") : README.index("## Limits")])
    assert re.findall(r"\d+\.\d", said) == [
        *kept("window-attention:heads=max,kernel=1,start=4"),
        *kept("dash"),
        *kept("random"),
    ]


def test_the_savings_on_images_are_those_of_the_committed_rows() -> None:
    page = (ROOT / "docs" / "vision-evaluate.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (ROOT / "results" / "images-h100.jsonl").read_text().splitlines()]
    for row in rows:
        tokens = "" if row["new_tokens"] == 16 else f" ({row['new_tokens']} tokens)"  # totals that do not compare
        shares = f"{100 * row['prefill_share']:.1f} | {100 * row['total_share']:.1f}{tokens}"
        sums = f"{row['tflops']:.1f} | {row['kv_mb']:.0f}"
        line = f"| `{row['method']}` | {row['retain']:.0%} | {row['prefill']:.3f} s | {shares} | {sums} |"
        assert line in page
    assert min(row["prefill_share"] for row in rows if row["retain"] == 0.35) < 0.5


def test_what_a_look_ahead_costs_is_what_the_committed_rows_say() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    rows = read_rows(ROOT / "results" / "bench-ahead-h100.jsonl", BenchRow)
    for tokens in {row.prompt for row in rows}:
        gains = " | ".join(f"{row.gain.prefill:.2f}x" for row in rows if row.prompt == tokens)
        assert f"| {tokens:,} | {gains} |" in page
