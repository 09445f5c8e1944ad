"""The paper's tables as commands, and the numbers that it prints."""

import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import typer.main

from deltahalt import cli
from tools import paper_tables

ROOT = Path(__file__).parents[2]

AVERAGES = {  # as the paper's Table 1 prints them
    "full model": 48.87,
    "FastV": 43.99,
    "LLMLingua2": 44.16,
    "D3": 45.00,
    "SnapKV (pr.)": 46.15,
    "DASH": 46.76,
}


@pytest.fixture
def paper() -> dict[str, Any]:
    return paper_tables.PAPER


def test_the_papers_numbers_agree_with_each_other(paper: dict[str, Any]) -> None:
    scores = paper["table1"]["paper"]
    assert {method: round(fmean(row), 2) for method, row in scores.items()} == AVERAGES
    tasks = [task for task, _, _ in paper["table1"]["columns"].values()]
    groups = paper["table4"]["groups"].values()
    assert sorted(task for group in groups for task in group["tasks"]) == sorted(tasks)
    for group in groups:
        for method, (score, *gains) in group["paper"].items():
            assert len(gains) == 5
            if method in scores:
                mean = fmean(scores[method][tasks.index(task)] for task in group["tasks"])
                assert score == pytest.approx(mean, abs=0.011)


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4"])
def test_a_table_is_commands_that_exist(table: str, paper: dict[str, Any]) -> None:
    options = ["--model", "m"] if table == "table3" else ["--model", "m", "--data", "d", "--bertscore", "none"]
    commands = list(paper_tables.commands(table, [], [], options).values())
    group = typer.main.get_command(cli.app)
    for command in commands:
        context = group.make_context("deltahalt", list(command))
        name, subcommand, rest = group.resolve_command(context, list(command))  # type: ignore[attr-defined]
        given = subcommand.make_context(name, rest).params
        assert given["model"] == "m"
        assert table == "table3" or given["bertscore"] == "none"  # what is given last counts
    policies = [command[command.index("--policy") + 1] for command in commands]
    assert "dash" in policies
    assert table == "table3" or policies[0] == "dense"
    assert len(set(policies)) == len(policies) == {"table3": 1}.get(table, 9)


def test_some_methods_and_tasks_of_a_table_can_be_asked_for() -> None:
    tasks = ["loogle_longdep_qa", "loogle_shortdep_qa"]
    commands = paper_tables.commands("table2", ["DASH", "FastV"], tasks, [])
    assert list(commands) == ["FastV", "DASH"]
    assert all("loogle_shortdep_qa,loogle_longdep_qa" in command for command in commands.values())
    with pytest.raises(ValueError, match="table1 has no needle"):
        paper_tables.commands("table1", [], ["needle"], [])
    with pytest.raises(ValueError, match="table1 has no SnapKV; it has full model"):
        paper_tables.commands("table1", ["SnapKV"], [], [])
    with pytest.raises(ValueError, match="table3 has no FastV; it has DASH"):
        paper_tables.commands("table3", ["FastV"], [], [])
    with pytest.raises(ValueError, match="table3 is a formula: leave --tasks out"):
        paper_tables.commands("table3", [], ["needle"], [])
    assert list(paper_tables.commands("table3", ["DASH"], [], [])) == ["DASH"]


def test_longbench_stands_in_for_longbench_e() -> None:
    (command,) = paper_tables.commands("table1", ["DASH"], [], [], longbench=True).values()
    (own,) = paper_tables.commands("table1", ["DASH"], [], []).values()
    assert command == [",".join(word.removesuffix("_e") for word in part.split(",")) for part in own]
    (command,) = paper_tables.commands("table4", ["auto"], ["longbench_lcc"], [], longbench=True).values()
    assert command == ["eval", "--policy", "auto", "--tasks", "longbench_lcc"]
    for table in ("table2", "table3"):
        with pytest.raises(ValueError, match=f"{table} is not of LongBench-E: leave --longbench out"):
            paper_tables.commands(table, [], [], [], longbench=True)


def test_llmlingua2_runs_with_the_encoder_given() -> None:
    commands = paper_tables.commands("table2", ["LLMLingua2", "DASH"], [], [], encoder="build/encoder")
    policies = {method: command[command.index("--policy") + 1] for method, command in commands.items()}
    assert policies == {"LLMLingua2": "llmlingua2:encoder=build/encoder", "DASH": "dash"}
    assert "llmlingua2" in paper_tables.commands("table2", ["LLMLingua2"], [], [])["LLMLingua2"]


def test_snapkv_has_an_interpreter_of_its_own(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "kvpress $@"\n', encoding="utf-8")
    python.chmod(0o755)
    script = [sys.executable, "-m", "tools.paper_tables", "table4", "--kvpress", python]
    done = subprocess.run(
        [*script, "--methods", "SnapKV,D3", "--no-such-option"], cwd=ROOT, capture_output=True, check=False, text=True
    )
    assert [line[:58] for line in done.stdout.splitlines() if line.startswith("kvpress")] == [
        "kvpress -m deltahalt eval --policy snapkv --tasks longbenc"
    ]
    assert done.stderr.rstrip().endswith("failed: D3")


def test_a_method_that_fails_is_named_and_the_others_run() -> None:
    script = [sys.executable, "-m", "tools.paper_tables", "table2"]
    methods = ["--methods", "full model,DASH", "--tasks", "loogle_longdep_qa"]
    done = subprocess.run([*script, *methods, "--no-such-option"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count(b"+ deltahalt eval") == 2
    assert done.stderr.rstrip().endswith(b"failed: full model, DASH")


def test_tasks_are_those_that_the_harness_knows(paper: dict[str, Any]) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")
    from lm_eval.tasks import TaskManager

    from deltahalt.lab.harness.lookup import LONGBENCH, OWN_TASKS

    known = TaskManager(include_path=[LONGBENCH, OWN_TASKS], include_defaults=False).task_index
    tasks = paper_tables.tasks
    assert {task for name in ("table1", "table2", "table4") for task in tasks(paper[name])} <= known.keys()
    assert {task.removesuffix("_e") for task in tasks(paper["table1"])} <= known.keys()


def test_the_formula_recipe_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.paper_tables", "table3", "--json"], cwd=ROOT, capture_output=True, check=True
    )
    assert b"+ deltahalt flops" in done.stdout
    assert b'"kept": 43711' in done.stdout
