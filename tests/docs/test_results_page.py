"""docs/lab/results.md: what was measured, beside the paper's numbers."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltahalt.lab.harness.table import setting
from deltahalt.lab.rows.base import append_rows
from deltahalt.lab.rows.eval import EvalRow
from deltahalt.profile import shipped
from helpers.eval_rows import scored
from tools import paper_tables, results_page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paper() -> dict[str, Any]:
    return paper_tables.PAPER


def test_the_page_is_that_of_the_committed_rows() -> None:
    written = (ROOT / "docs" / "lab" / "results.md").read_text(encoding="utf-8")
    assert results_page.page(results_page.committed()) == written, "make results"


def rows(policy: str, score: float, *tasks: str, **fields: Any) -> list[EvalRow]:
    return [scored(policy, score, task=f"longbench_{task}_e", metric="score", model="tiny", **fields) for task in tasks]


def test_measured_scores_stand_beside_the_papers(paper: dict[str, Any]) -> None:
    measured = results_page.by_method(
        [
            *rows("dash", 0.1, "qasper"),
            *rows("dash", 0.25, "qasper", samples=7),  # measured again
            *rows("uniform", 0.5, "qasper"),  # no method of the table
            *rows("snapkv", 0.5, "qasper"),
            *rows("dash", 0.0, "trec"),
        ]
    )
    lines = [line for line in results_page.score_table(paper["table1"], measured).splitlines() if "| tiny |" in line]
    assert lines == [
        "| SnapKV | tiny | 3 | 50.00 |  |  |  |  |  |  |  |  |  |  |  |  |  |",
        "| DASH | tiny | 3-7 | 25.00 |  |  |  |  |  | 0.00 |  |  |  |  |  |  |  |",
    ]
    measured = results_page.by_method(rows("llmlingua2:encoder=build/own", 0.5, "qasper"))
    content = results_page.score_table(paper["table1"], measured)
    assert "| LLMLingua2 | tiny, own | 3 | 50.00 |" in content  # whose encoder is not the published one
    measured = results_page.by_method(rows("dash", 0.5, "qasper", stderr=0.125))
    assert "| DASH | tiny | 3 | 50.00 ± 12.50 |" in results_page.score_table(paper["table1"], measured)
    every = [task.removeprefix("longbench_").removesuffix("_e") for task, _, _ in paper["table1"]["columns"].values()]
    whole = results_page.score_table(
        paper["table1"], results_page.by_method(rows("dense", 0.0, *every[1:]) + rows("dense", 0.13, "qasper"))
    )
    assert whole.splitlines()[-1].endswith("| 0.00 | 1.00 |")  # zeros count in the mean


def test_what_a_profile_chooses_stands_beside_the_methods(paper: dict[str, Any]) -> None:
    profile = next(profile for profile in shipped() if profile.model == "smollm2-135m" and not profile.query_free)
    chosen = [replace(row, model=profile.model) for row in rows(profile.choose(None), 0.25, "qasper")]
    measured = results_page.by_method([*chosen, *rows(profile.choose(None), 0.5, "qasper")])
    lines = results_page.score_table(paper["table1"], measured).splitlines()
    assert "| auto | smollm2-135m | 3 | 25.00 |" in lines[-1]  # and not by another model, whose profile it is not
    assert "tiny" not in "".join(lines)


def test_rows_of_the_former_default_are_named(paper: dict[str, Any]) -> None:
    measured = results_page.by_method(rows("max-sim:start=2,pruning_ratio=0.425", 0.5, "qasper"))
    assert [one.method for one in measured] == ["former auto"]


def test_longbench_in_place_of_longbench_e_is_named(paper: dict[str, Any]) -> None:
    other = [replace(row, task=row.task.removesuffix("_e")) for row in rows("dash", 0.5, "qasper", "multifieldqa_en")]
    measured = results_page.by_method([*other, *rows("dash", 0.25, "qasper")])
    lines = [line for line in results_page.score_table(paper["table1"], measured).splitlines() if "| tiny" in line]
    assert [line[:46] for line in lines] == [
        "| DASH | tiny, LongBench | 3 | 50.00 | 50.00 |",
        "| DASH | tiny | 3 | 25.00 |  |  |  |  |  |  | "[:46],
    ]
    content = results_page.efficiency_table(paper["table4"], measured, {})
    assert "| Single-document QA | DASH | tiny, LongBench | 3 | 50.00 |  |  |  |  |  |" in content.splitlines()


def test_measured_efficiency_is_of_all_a_groups_tasks(paper: dict[str, Any]) -> None:
    full = rows("dense", 0.5, "qasper", "multifieldqa_en", peak_bytes=30)
    slow, fast = rows("dash", 0.4, "qasper", "multifieldqa_en", prefill_seconds=1.0, peak_bytes=20)
    slow = replace(slow, prefill_seconds=3.0, peak_bytes=25)

    def table(*given: EvalRow) -> list[str]:
        dense = {setting(row): row for row in given if row.policy == "dense"}
        content = results_page.efficiency_table(paper["table4"], results_page.by_method(given), dense)
        return [line for line in content.splitlines() if "| tiny |" in line]

    # Prefill 16 s against 4 s, and 24 s in all against 12 s.
    assert table(*full, slow, fast)[1] == (
        "| Single-document QA | DASH | tiny | 3 | 40.00 | 4.00x | 1.00x | 2.00x | 2.00x | 1.20x |"
    )
    assert len(table(*full, slow)) == 1  # a task is missing
    without = ["| Single-document QA | DASH | tiny | 3 | 40.00 |  |  |  |  |  |"]
    assert table(slow, fast) == without  # the full model is
    assert table(*full, slow, replace(fast, machine="another"))[1:] == without
    # SnapKV's environment has a full model of its own, which is the latest.
    later = [replace(row, transformers="older", prefill_seconds=80.0, value=0.6) for row in full]
    kept = [replace(row, policy="snapkv") for row in later]
    snapkv, dash = table(*full, slow, fast, *later, *kept)[1:]
    assert snapkv == "| Single-document QA | SnapKV | tiny | 3 | 60.00 | 1.00x | 1.00x | 1.00x | 1.00x | 1.00x |"
    assert dash == "| Single-document QA | DASH | tiny | 3 | 40.00 | 4.00x | 1.00x | 2.00x | 2.00x | 1.20x |"


def test_processes_that_shared_a_gpu_give_scores_and_no_efficiency(tmp_path: Path) -> None:
    tasks = ("qasper", "multifieldqa_en")
    measured = rows("dense", 0.5, *tasks, peak_bytes=30) + rows("dash", 0.25, *tasks, peak_bytes=20)

    def shown(name: str) -> list[str]:
        append_rows(tmp_path / name, measured)
        return [line for line in results_page.page([tmp_path / name]).splitlines() if "tiny |" in line]

    own, shared = shown("eval-own.jsonl"), shown("eval-shared-own.jsonl")
    single = "| Single-document QA | DASH | tiny | 3 | 25.00 |"
    listed = "| tiny | longbench_qasper_e | score | `dash` |"
    assert f"{single} 1.00x | 1.00x | 1.00x | 1.00x | 1.50x |" in own
    assert not any(line.startswith("| Single-document QA") for line in shared)
    assert any(line.startswith("| DASH | tiny | 3 | 25.00 | 25.00 |") for line in shared)
    assert f"{listed} 0.2500 | 3 | 1.00x | 1.00x | 1.00x | 1.00x | 1.50x |" in own
    assert f"{listed} 0.2500 | 3 |" in shared


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "docs" / "lab").mkdir(parents=True)
    (tmp_path / "docs" / "lab" / "results.md").write_text("old")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):
        (tmp_path / name).touch()
    done = subprocess.run(["make", "-f", ROOT / "Makefile", "results"], cwd=tmp_path, capture_output=True, check=False)
    assert b"Error 1" in done.stderr
    assert (tmp_path / "docs" / "lab" / "results.md").read_text() == "old"
