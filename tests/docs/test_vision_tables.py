"""The paper's tables of images as commands and as pages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltahalt.policies import parse_policy
from deltahalt.vision.policies import parse_vision_policy
from tools import paper_tables, vision_tables

ROOT = Path(__file__).parents[2]

PRINTED = {"table5": [80.0, 83.0, 79.5, 81.4, 85.2, 65.9, 69.8, 68.4, 69.1, 74.7, 58.7, 59.7, 58.9, 61.4, 66.7]}

RECOMPUTED = {"table6": [83.9, 83.3, 90.6, 89.6, 78.8, 78.5, 79.1, 79.6]}  # where the paper prints other averages


@pytest.fixture
def paper() -> dict[str, Any]:
    return paper_tables.PAPER


def test_a_run_on_images_without_results_is_named(tmp_path: Path) -> None:
    script = [sys.executable, "-m", "tools.vision_tables", "table6", "--out", tmp_path]
    done = subprocess.run(
        [*script, "--methods", "full model,ToMe", "--no-such-option"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.count(b"+ python -m lmms_eval") == 3
    assert done.stdout.count(b"*paper*") == 9
    assert done.stderr.rstrip().endswith(b"failed: full model, 50 % kept ToMe, 35 % kept ToMe")


@pytest.mark.parametrize("table", ["table5", "table6"])
def test_averages_of_the_papers_scores_on_images(table: str) -> None:
    full, *lines = vision_tables.runs(table)
    averages = [round(vision_tables.decline(line.paper, full.paper), 1) for line in lines]
    assert averages == (PRINTED | RECOMPUTED)[table]
    assert vision_tables.decline([*lines[0].paper[:-1], None], full.paper) is None


@pytest.mark.parametrize(("table", "count"), [("table5", 16), ("table6", 9), ("table7", 17)])
def test_a_table_of_images_is_runs_of_policies_that_exist(table: str, count: int, paper: dict[str, Any]) -> None:
    lines = vision_tables.runs(table)
    assert len(lines) == len({line.folder(Path()) for line in lines}) == count
    for line in lines:
        command = vision_tables.command(table, line, "m", Path("out"), ["--limit", "2"])
        assert command[-2:] == ["--limit", "2"]
        pretrained, *arguments = command[command.index("--model_args") + 1].split(",")
        given = dict(argument.split("=") for argument in arguments)
        assert pretrained == "pretrained=m"
        assert len(given) == len(arguments)
        vision = [f"{key.removeprefix('vision_')}={given.pop(key)}" for key in list(given) if key[:7] == "vision_"]
        if vision:
            name, *options = vision
            parse_vision_policy(f"{name.removeprefix('policy=')}:{','.join(options)}")
        policy = given.pop("policy", "dense")
        parse_policy(policy, **given)
        assert len(line.paper) == len(paper[table]["columns"]) + (4 if table == "table7" else 0)
    with pytest.raises(ValueError, match=f"{table} has no LLMLingua2; it has full model"):
        vision_tables.runs(table, ["LLMLingua2"])


def test_what_was_measured_on_images_stands_under_the_papers(tmp_path: Path, paper: dict[str, Any]) -> None:

    def keep(table: str, method: str, score: float, seconds: float, when: str = "20260101_000000") -> None:
        line = next(line for line in vision_tables.runs(table) if line.method == method)
        columns = paper[table]["columns"].values()
        results = {task: {f"{name},none": score / scale for name in names} for task, names, scale in columns}
        took = {"avg_latency": seconds, "avg_prefill_seconds": seconds / 4, "avg_kv_cache_mb": 5.0}
        took |= {"avg_llm_prefill_tflops": 2.0, "avg_vit_tflops": 1.25}
        file = line.folder(tmp_path / table) / "m" / f"{when}_results.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"results": results, "throughput": took}))

    keep("table5", "full model", 80.0, 2.0)
    keep("table5", "FastV", 10.0, 1.0)
    keep("table5", "FastV", 20.0, 1.0, "20260102_000000")  # measured again
    (tmp_path / "table5" / "75-fewer-FastV" / "submissions").mkdir()
    (tmp_path / "table5" / "75-fewer-FastV" / "submissions" / "mmbench_results.json").write_text("{}")
    keep("table7", "full model", 80.0, 2.0)
    keep("table7", "DASH", 70.0, 1.0)

    def measured(table: str) -> list[str]:
        return [line for line in vision_tables.page(table, tmp_path / table).splitlines() if "| measured |" in line]

    # MME is the sum of two scores.
    assert measured("table5") == [
        "|  | full model | measured | 80.0 | 160.0 | 80.0 | 80.0 | 80.0 | 80.0 | 100.0 |",
        "| 75 % fewer | FastV | measured | 20.0 | 40.0 | 20.0 | 20.0 | 20.0 | 20.0 | 25.0 |",
    ]
    assert measured("table7") == [
        "|  | full model | measured | 100.0 | 100.0 | 3.2 | 5.0 | 80.0 |",
        "| 35 % kept | DASH | measured | 50.0 | 50.0 | 3.2 | 5.0 | 70.0 |",
    ]
    assert "| *paper* | 59.8 | 2109.0 | 83.5 | 55.4 | 44.6 | 62.6 | 85.2 |" in vision_tables.page("table5", tmp_path)
