"""The recipes: the paper's tables as commands and as a page, and the samples of `make eval-smoke`."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer.main

from deltahalt import cli
from deltahalt.evaluation.sweep import SweepRow
from deltahalt.harness.rows import EvalRow
from deltahalt.models import LoadedModel
from deltahalt.options import with_options
from deltahalt.policies import parse_policy
from deltahalt.profile import Choice
from deltahalt.rows import append_rows
from deltahalt.vision.policies import parse_vision_policy
from sweep_rows import row
from test_rows import scored

ROOT = Path(__file__).parents[1]
AVERAGES = {  # as the paper's Table 1 prints them
    "full model": 48.87,
    "FastV": 43.99,
    "LLMLingua2": 44.16,
    "D3": 45.00,
    "SnapKV (pr.)": 46.15,
    "DASH": 46.76,
}
PRINTED = {"table5": [80.0, 83.0, 79.5, 81.4, 85.2, 65.9, 69.8, 68.4, 69.1, 74.7, 58.7, 59.7, 58.9, 61.4, 66.7]}
RECOMPUTED = {"table6": [83.9, 83.3, 90.6, 89.6, 78.8, 78.5, 79.1, 79.6]}  # where the paper prints other averages


@pytest.fixture
def paper(recipe: Callable[[str], ModuleType]) -> dict[str, Any]:
    return recipe("paper_tables").PAPER


def test_the_page_is_that_of_the_committed_rows(recipe: Callable[[str], ModuleType]) -> None:
    page = recipe("results_page")
    assert page.page(page.committed()) == (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "make results"


def test_the_tables_of_the_other_pages_are_those_of_the_committed_rows(recipe: Callable[[str], ModuleType]) -> None:
    tables = recipe("page_tables")
    written = {file: file.read_text(encoding="utf-8") for file in tables.pages()}
    for file, page in written.items():
        assert tables.filled(page) == page, f"{file.name}: make results"
    shown = {name for page in written.values() for _, _, name, _ in tables.MARKED.findall(page)}
    sweeps = (
        "d3",
        "development",
        "exits",
        "frontier",
        "frozen",
        "heldout",
        "methods",
        "query-free",
        "resembling",
        "signals",
        "variants",
    )
    assert {file.stem for kind in sweeps for file in tables.RESULTS.glob(f"{kind}-*.jsonl")} <= shown
    kinds = {kind for page in written.values() for _, kind, *_ in tables.MARKED.findall(page)}
    assert kinds == set(tables.TABLES)


def test_a_page_keeps_what_is_around_its_tables(
    recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    tables = recipe("page_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    append_rows(tmp_path / "few.jsonl", [scored("dense", 0.5)])
    marks = ("<!-- table: rows few -->", "<!-- /table -->")
    page = tables.filled("Before.\n{}\nold{}\nBetween.\n\n{}\n{}\nAfter.\n".format(*marks, *marks))
    table = f"{marks[0]}\n\n{tables.markdown([scored('dense', 0.5)])}\n\n{marks[1]}"
    assert page == f"Before.\n{table}\nBetween.\n\n{table}\nAfter.\n"
    assert tables.filled(page) == page


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
def test_a_table_is_commands_that_exist(table: str, recipe: Callable[[str], ModuleType], paper: dict[str, Any]) -> None:
    options = ["--model", "m"] if table == "table3" else ["--model", "m", "--data", "d", "--bertscore", "none"]
    commands = list(recipe("paper_tables").commands(table, [], [], options).values())
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
    assert len(set(policies)) == len(policies) == {"table3": 1}.get(table, 6)


def test_some_methods_and_tasks_of_a_table_can_be_asked_for(recipe: Callable[[str], ModuleType]) -> None:
    tables = recipe("paper_tables")
    tasks = ["loogle_longdep_qa", "loogle_shortdep_qa"]
    commands = tables.commands("table2", ["DASH", "FastV"], tasks, [])
    assert list(commands) == ["FastV", "DASH"]
    assert all("loogle_shortdep_qa,loogle_longdep_qa" in command for command in commands.values())
    with pytest.raises(ValueError, match="table1 has no needle"):
        tables.commands("table1", [], ["needle"], [])
    with pytest.raises(ValueError, match="table1 has no SnapKV; it has full model"):
        tables.commands("table1", ["SnapKV"], [], [])


def test_llmlingua2_runs_with_the_encoder_given(recipe: Callable[[str], ModuleType]) -> None:
    tables = recipe("paper_tables")
    commands = tables.commands("table2", ["LLMLingua2", "DASH"], [], [], "build/encoder")
    policies = {method: command[command.index("--policy") + 1] for method, command in commands.items()}
    assert policies == {"LLMLingua2": "llmlingua2:encoder=build/encoder", "DASH": "dash"}
    assert "llmlingua2" in tables.commands("table2", ["LLMLingua2"], [], [])["LLMLingua2"]


def test_snapkv_has_an_interpreter_of_its_own(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "kvpress $@"\n', encoding="utf-8")
    python.chmod(0o755)
    script = [sys.executable, ROOT / "recipes" / "paper_tables.py", "table4", "--kvpress", python]
    done = subprocess.run(
        [*script, "--methods", "SnapKV,D3", "--no-such-option"], capture_output=True, check=False, text=True
    )
    assert [line[:58] for line in done.stdout.splitlines() if line.startswith("kvpress")] == [
        "kvpress -m deltahalt eval --policy snapkv --tasks longbenc"
    ]
    assert done.stderr.rstrip().endswith("failed: D3")


def test_a_method_that_fails_is_named_and_the_others_run() -> None:
    script = [sys.executable, ROOT / "recipes" / "paper_tables.py", "table2"]
    methods = ["--methods", "full model,DASH", "--tasks", "loogle_longdep_qa"]
    done = subprocess.run([*script, *methods, "--no-such-option"], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count(b"+ deltahalt eval") == 2
    assert done.stderr.rstrip().endswith(b"failed: full model, DASH")


def test_tasks_are_those_that_the_harness_knows(paper: dict[str, Any], recipe: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")
    from lm_eval.tasks import TaskManager

    from deltahalt.harness.lookup import LONGBENCH, OWN_TASKS

    known = TaskManager(include_path=[LONGBENCH, OWN_TASKS], include_defaults=False).task_index
    tasks = recipe("paper_tables").tasks
    assert {task for name in ("table1", "table2", "table4") for task in tasks(paper[name])} <= known.keys()


def test_the_formula_recipe_runs() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / "paper_tables.py", "table3", "--json"], capture_output=True, check=True
    )
    assert b"+ deltahalt flops" in done.stdout
    assert b'"kept": 43711' in done.stdout


def rows(policy: str, score: float, *tasks: str, **fields: Any) -> list[EvalRow]:
    return [scored(policy, score, task=f"longbench_{task}_e", metric="score", model="tiny", **fields) for task in tasks]


def test_measured_scores_stand_beside_the_papers(recipe: Callable[[str], ModuleType], paper: dict[str, Any]) -> None:
    page = recipe("results_page")
    measured = page.by_method(
        [
            *rows("dash", 0.1, "qasper"),
            *rows("dash", 0.25, "qasper", samples=7),  # measured again
            *rows("uniform", 0.5, "qasper"),  # no method of the paper
            *rows("snapkv", 0.5, "qasper"),  # not in Table 1
            *rows("dash", 0.0, "trec"),
        ]
    )
    lines = [line for line in page.score_table(paper["table1"], measured).splitlines() if "| tiny |" in line]
    assert lines == ["| DASH | tiny | 3-7 | 25.00 |  |  |  |  |  | 0.00 |  |  |  |  |  |  |  |"]
    measured = page.by_method(rows("llmlingua2:encoder=build/own", 0.5, "qasper"))
    content = page.score_table(paper["table1"], measured)
    assert "| LLMLingua2 | tiny, own | 3 | 50.00 |" in content  # whose encoder is not the published one
    measured = page.by_method(rows("dash", 0.5, "qasper", stderr=0.125))
    assert "| DASH | tiny | 3 | 50.00 ± 12.50 |" in page.score_table(paper["table1"], measured)
    every = [task.removeprefix("longbench_").removesuffix("_e") for task, _, _ in paper["table1"]["columns"].values()]
    whole = page.score_table(
        paper["table1"], page.by_method(rows("dense", 0.0, *every[1:]) + rows("dense", 0.13, "qasper"))
    )
    assert whole.splitlines()[-1].endswith("| 0.00 | 1.00 |")  # zeros count in the mean


def test_measured_efficiency_is_of_all_a_groups_tasks(
    recipe: Callable[[str], ModuleType], paper: dict[str, Any]
) -> None:
    page = recipe("results_page")
    full = rows("dense", 0.5, "qasper", "multifieldqa_en", peak_bytes=30)
    slow, fast = rows("dash", 0.4, "qasper", "multifieldqa_en", prefill_seconds=1.0, peak_bytes=20)
    slow = replace(slow, prefill_seconds=3.0, peak_bytes=25)

    def table(*given: EvalRow) -> list[str]:
        content = page.efficiency_table(paper["table4"], page.by_method(given))
        return [line for line in content.splitlines() if "| tiny |" in line]

    # Prefill 16 s against 4 s, and 24 s in all against 12 s.
    assert table(*full, slow, fast)[1] == (
        "| Single-document QA | DASH | tiny | 3 | 40.00 | 4.00x | 1.00x | 2.00x | 2.00x | 1.20x |"
    )
    assert len(table(*full, slow)) == 1  # a task is missing
    assert table(slow, fast) == []  # the full model is
    assert len(table(*full, slow, replace(fast, machine="another"))) == 1


def test_processes_that_shared_a_gpu_give_scores_and_no_efficiency(
    recipe: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    tasks = ("qasper", "multifieldqa_en")
    measured = rows("dense", 0.5, *tasks, peak_bytes=30) + rows("dash", 0.25, *tasks, peak_bytes=20)

    def shown(name: str) -> list[str]:
        append_rows(tmp_path / name, measured)
        return [line for line in recipe("results_page").page([tmp_path / name]).splitlines() if "tiny |" in line]

    own, shared = shown("eval-own.jsonl"), shown("eval-shared-own.jsonl")
    single = "| Single-document QA | DASH | tiny | 3 | 25.00 |"
    listed = "| tiny | longbench_qasper_e | score | `dash` |"
    assert f"{single} 1.00x | 1.00x | 1.00x | 1.00x | 1.50x |" in own
    assert f"{single}  |  |  |  |  |" in shared
    assert f"{listed} 0.2500 | 3 | 1.00x | 1.00x | 1.00x | 1.00x | 1.50x |" in own
    assert f"{listed} 0.2500 | 3 |" in shared


def test_what_long_policies_share_is_written_once(recipe: Callable[[str], ModuleType]) -> None:
    brief = recipe("briefly").brief
    one, two = (f"window-attention:start={start},heads=max,keep_first=256" for start in (4, 40))
    stages = "key-norm:keep_first=256,start=1,heads=max+dash:heads=max,keep_first=256"
    exit_ = f"{one}+forecast:start=20,pruning_ratio=1"
    cells = [f"| `{policy}` |" for policy in ("dash", one, two, one, stages, exit_)]
    legend, empty, *shown = brief("\n".join(cells), ["dash", one, two, stages, exit_]).splitlines()
    assert (legend, empty) == ("`\u2026` is `heads=max,keep_first=256`.", "")
    assert shown == [
        "| `dash` |",
        "| `window-attention:start=4,\u2026` |",
        "| `window-attention:start=40,\u2026` |",
        "| `window-attention:start=4,\u2026` |",
        "| `key-norm:start=1,\u2026+dash:\u2026` |",
        "| `window-attention:start=4,\u2026+forecast:start=20,pruning_ratio=1` |",
    ]
    for policies in (["dash"], ["dash", one, "random:start=0.5,pruning_ratio=0.667,ratio_of=prompt"]):
        assert brief(cells[1], policies) == cells[1]


FAST, FASTER = "random:start=2", "random:start=1"


def sweep_rows(policy: str, *losses: float, exact: str, speedup: float) -> list[SweepRow]:
    """A needle for each of `exact`, "1" where it is found (the full model finds all), then a document for each loss."""
    plain = row(policy, task="needle", reference_speedup=speedup)
    needles = [replace(plain, sample=f"needle {n}", exact=found == "1") for n, found in enumerate(exact)]
    return needles + [
        replace(plain, sample=str(n), task=("loogle_summ", "multi_news")[n % 2], nll=1 + loss)
        for n, loss in enumerate(losses)
    ]


@pytest.fixture
def reached(recipe: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe, over rows of the model `small` and a profile of its own."""
    module = recipe("reached")
    few = [
        *sweep_rows("dense", 0.0, 0.0, exact="11", speedup=1.0),
        *sweep_rows(FAST, 0.1, 0.3, exact="11", speedup=1.704),
        *sweep_rows("uniform", 0.0, 0.0, exact="10", speedup=1.9),
        *sweep_rows("dash", 0.0, 0.2, exact="11", speedup=1.696),
        *sweep_rows("key-norm", -1.0, 0.0, exact="11", speedup=1.69),
    ]
    append_rows(tmp_path / "frontier-small.jsonl", few)
    append_rows(tmp_path / "heldout-small.jsonl", sweep_rows(FASTER, 0.4, 0.6, exact="1", speedup=2.5))
    choices = [Choice(FAST, 1.7, 0.0, 1.0)]
    profile = SimpleNamespace(model="small", choices=choices, choose={1.7: FAST, 2.5: FASTER}.get, query_free=False)
    blind = SimpleNamespace(model="small", choose={1.5: "dash-layer"}.get, query_free=True)
    append_rows(tmp_path / "query-free-small.jsonl", sweep_rows("dash-layer", 0.4, 0.6, exact="10", speedup=1.5))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "shipped", lambda: [profile, blind])
    return module


def test_the_best_policy_is_fast_enough_finds_most_and_then_loses_least(reached: ModuleType) -> None:
    assert reached.best(reached.Aim("small", 1.7, 0.0)).policy == "dash"
    assert reached.best(reached.Aim("small", 1.9, 0.0)).policy == "uniform"


@pytest.mark.parametrize(
    ("needles", "nll", "met"),
    [(0.0, 0.21, "needles, NLL"), (0.1, 0.21, "NLL"), (0.0, 0.1, "needles"), (0.1, 0.1, "nothing")],
)
def test_what_is_reached_stands_beside_what_was_aimed_at(
    needles: float, nll: float, met: str, reached: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    aims = [reached.Aim("small", 1.7, needles, nll), reached.Aim("small", 2.5, 0.0, 0.4)]
    monkeypatch.setattr(reached, "AIMS", aims)
    profile, best, both = reached.reached_table().splitlines()[2:]
    figures = "4 | 2 of 2 (2) | +0.20 \u00b1 0.10, median +0.20"
    assert (
        profile == f"| small | 1.7x | profile | `{FAST}` | {figures} | needles {needles:+.2f}, NLL {nll:+.2f} | {met} |"
    )
    assert best.startswith(
        "| small | 1.7x | best measured | `dash` | 4 | 2 of 2 (2) | +0.10 \u00b1 0.10, median +0.10 |"
    )
    assert both == (
        f"| small | 2.5x | profile, best measured | `{FASTER}` | 3 | 1 of 1 (1) | +0.50 \u00b1 0.10, median +0.50 "
        "| needles +0.00, NLL +0.40 | needles |"
    )
    monkeypatch.setattr(reached, "AIMS", [reached.Aim("small", 1.5, -0.1, query_free=True)])
    assert reached.reached_table().splitlines()[-1] == (
        "| small, query-free | 1.5x | profile, best measured | `dash-layer` | 4 | 1 of 2 (2) "
        "| +0.50 \u00b1 0.10, median +0.50 | needles -0.10 | nothing |"
    )
    assert reached.auto_table().splitlines()[-1] == f"| small | {figures} |"


def test_a_run_on_images_without_results_is_named(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "recipes" / "vision_tables.py", "table6", "--out", tmp_path]
    done = subprocess.run(
        [*script, "--methods", "full model,ToMe", "--no-such-option"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.count(b"+ python -m lmms_eval") == 3
    assert done.stdout.count(b"*paper*") == 9
    assert done.stderr.rstrip().endswith(b"failed: full model, 50 % kept ToMe, 35 % kept ToMe")


@pytest.mark.parametrize("table", ["table5", "table6"])
def test_averages_of_the_papers_scores_on_images(table: str, recipe: Callable[[str], ModuleType]) -> None:
    tables = recipe("vision_tables")
    full, *lines = tables.runs(table)
    averages = [round(tables.decline(line.paper, full.paper), 1) for line in lines]
    assert averages == (PRINTED | RECOMPUTED)[table]
    assert tables.decline([*lines[0].paper[:-1], None], full.paper) is None


@pytest.mark.parametrize(("table", "count"), [("table5", 16), ("table6", 9), ("table7", 17)])
def test_a_table_of_images_is_runs_of_policies_that_exist(
    table: str, count: int, recipe: Callable[[str], ModuleType], paper: dict[str, Any]
) -> None:
    tables = recipe("vision_tables")
    lines = tables.runs(table)
    assert len(lines) == len({line.folder(Path()) for line in lines}) == count
    for line in lines:
        command = tables.command(table, line, "m", Path("out"), ["--limit", "2"])
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
        parse_policy(with_options(policy, given))
        assert len(line.paper) == len(paper[table]["columns"]) + (4 if table == "table7" else 0)
    with pytest.raises(ValueError, match=f"{table} has no LLMLingua2; it has full model"):
        tables.runs(table, ["LLMLingua2"])


def test_what_was_measured_on_images_stands_under_the_papers(
    tmp_path: Path, recipe: Callable[[str], ModuleType], paper: dict[str, Any]
) -> None:
    tables = recipe("vision_tables")

    def keep(table: str, method: str, score: float, seconds: float, when: str = "20260101_000000") -> None:
        line = next(line for line in tables.runs(table) if line.method == method)
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
        return [line for line in tables.page(table, tmp_path / table).splitlines() if "| measured |" in line]

    # MME is the sum of two scores.
    assert measured("table5") == [
        "|  | full model | measured | 80.0 | 160.0 | 80.0 | 80.0 | 80.0 | 80.0 | 100.0 |",
        "| 75 % fewer | FastV | measured | 20.0 | 40.0 | 20.0 | 20.0 | 20.0 | 20.0 | 25.0 |",
    ]
    assert measured("table7") == [
        "|  | full model | measured | 100.0 | 100.0 | 3.2 | 5.0 | 80.0 |",
        "| 35 % kept | DASH | measured | 50.0 | 50.0 | 3.2 | 5.0 | 70.0 |",
    ]
    assert "| *paper* | 59.8 | 2109.0 | 83.5 | 55.4 | 44.6 | 62.6 | 85.2 |" in tables.page("table5", tmp_path)


def test_smoke_samples_ask_for_what_is_in_them(tmp_path: Path, loaded_tiny: LoadedModel) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")
    from deltahalt.harness.lookup import find_tasks

    for folder in ("one", "two"):
        subprocess.run([sys.executable, ROOT / "recipes" / "smoke_data.py", tmp_path / folder], check=True)
    files = [path for path in sorted(tmp_path.glob("one/*/*")) if path.is_file()]
    assert len(files) == 3
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    names = ["longbench_multifieldqa_en_e", "niah_single_2", "needle"]
    tasks = find_tasks(names, data=tmp_path / "one", lengths=(1536,), tokenizer=loaded_tiny.tokenizer)
    for task in tasks:
        docs = list(task.test_docs())  # type: ignore[no-untyped-call]
        assert len(docs) >= 3
        for doc in docs:
            (answer,) = doc.get("answers") or doc["outputs"]
            assert str(task.doc_to_text(doc)).count(answer) == 1
    smoke = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("SMOKE :="))
    assert ",".join(names) in smoke
    lines = (tmp_path / "one" / "longbench" / "multifieldqa_en_e.jsonl").read_text().splitlines()
    assert len({json.loads(line)["context"] for line in lines}) == 3


def test_table_7_is_timed_against_the_host(recipe: Callable[[str], ModuleType]) -> None:
    efficiency = recipe("vision_efficiency")
    model = efficiency.build(small=True, device="cpu")
    inputs = efficiency.prompt(model, images=2, side=112)
    (combination,) = efficiency.combinations(["vision-dash/dash"], [0.35])
    row = efficiency.measure(model, "tiny", combination, inputs, tokens=2, repeats=1)
    assert row.visual == 32
    assert 0 < row.tflops < row.full_tflops
    assert 0 < row.kv_mb < row.full_kv_mb
