"""The tables of README.md and docs/ that come of committed rows."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.rows.base import append_rows
from deltahalt.profile import Choice
from helpers.eval_rows import scored
from helpers.sweep_rows import row
from tools import page_tables
from tools import reached as reached_tool
from tools.briefly import brief

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_other_pages_are_those_of_the_committed_rows() -> None:
    written = {file: file.read_text(encoding="utf-8") for file in page_tables.pages()}
    for file, page in written.items():
        assert page_tables.filled(page) == page, f"{file.name}: make results"
    shown = {name for page in written.values() for _, _, name, _ in page_tables.MARKED.findall(page)}
    measured = (
        "asks",
        "d3",
        "development",
        "embed",
        "exits",
        "finding",
        "frontier",
        "frozen",
        "heldout",
        "methods",
        "query-free",
        "readout",
        "resembling",
        "signals",
        "variants",
        "vision",
    )
    files = [file for kind in measured for file in page_tables.RESULTS.glob(f"{kind}-*.jsonl*")]
    assert {file.name.partition(".jsonl")[0] for file in files} <= shown
    kinds = {kind for page in written.values() for _, kind, *_ in page_tables.MARKED.findall(page)}
    assert kinds == set(page_tables.TABLES)


def test_a_page_keeps_what_is_around_its_tables(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(page_tables, "RESULTS", tmp_path)
    append_rows(tmp_path / "few.jsonl", [scored("dense", 0.5)])
    marks = ("<!-- table: rows few -->", "<!-- /table -->")
    page = page_tables.filled("Before.\n{}\nold{}\nBetween.\n\n{}\n{}\nAfter.\n".format(*marks, *marks))
    table = f"{marks[0]}\n\n{page_tables.markdown([scored('dense', 0.5)])}\n\n{marks[1]}"
    assert page == f"Before.\n{table}\nBetween.\n\n{table}\nAfter.\n"
    assert page_tables.filled(page) == page


def test_methods_are_averaged_over_the_tasks_that_all_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_tables, "RESULTS", tmp_path)
    given = {"dense": {"lcc": 0.5, "trec": 0.3, "samsum": 0.9}, "dash": {"lcc": 0.2, "trec": 0.4}, "random": {"lcc": 0}}
    rows = [
        scored(policy, value, task=f"longbench_{task}", metric=metric, stderr=0.03)
        for policy, scores in given.items()
        for task, value in scores.items()
        for metric in ("score", "another")
    ]
    append_rows(tmp_path / "eval-shared-few.jsonl", rows)
    assert page_tables.means_table("eval-shared-few").splitlines()[2:] == [
        "| full model | 2 | 6 | 40.0 \u00b1 2.1 |  |",
        "| DASH | 2 | 6 | 30.0 \u00b1 2.1 | -10.0 |",  # and not random, which is no method of the paper's tables
    ]
    told = [replace(row, by_sample=(row.value, row.value + (row.policy == "dash") / 5)) for row in rows]
    append_rows(tmp_path / "eval-shared-told.jsonl", told)
    assert (
        page_tables.means_table("eval-shared-told")
        .splitlines()[-1]
        .endswith(
            "| -10.0 \u00b1 7.1 |"  # of either task's difference, 0.1, over the square root of two
        )
    )
    # Another run, with a full model of its own that scores less, is set beside that one.
    own = [replace(row, torch="3") for row in told if row.policy == "dash"]
    append_rows(tmp_path / "eval-shared-else.jsonl", [*(row for row in told if row.policy != "dash"), *own])
    assert page_tables.means_table("eval-shared-else").splitlines()[-1].endswith("| -10.0 |")
    less = [replace(row, torch="3", value=row.value - 0.1) for row in told if row.policy == "dense"]
    append_rows(tmp_path / "eval-shared-both.jsonl", [*less, *told[:4], *own])
    assert "| DASH | 2 | 6 | 30.0 \u00b1 2.1 | +0.0 \u00b1" in page_tables.means_table("eval-shared-both")


def test_prefill_is_summed_over_tasks_and_told_of_runs_that_had_the_machine_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_tables, "RESULTS", tmp_path)
    seconds = {"dense": (3.0, 5.0), "dash": (1.0, 4.0)}
    rows = [
        scored(policy, 0.5, task=f"longbench_{task}", metric="score", prefill_seconds=took)
        for policy, both in seconds.items()
        for task, took in zip(("lcc", "trec"), both, strict=True)
    ]
    for name, shown in (("eval-quiet", True), ("eval-shared-busy", False)):
        append_rows(tmp_path / f"{name}.jsonl", rows)
        table = page_tables.means_table(name)
        assert ("| prefill |" in table, "| 1.60x |" in table) == (shown, shown)


def test_what_long_policies_share_is_written_once() -> None:
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
def reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, over rows of the model `small` and a profile of its own."""
    module = reached_tool
    few = [
        *sweep_rows("dense", 0.0, 0.0, exact="11", speedup=1.0),
        *sweep_rows(FAST, 0.1, 0.3, exact="11", speedup=1.704),
        *sweep_rows("uniform", 0.0, 0.0, exact="10", speedup=1.9),
        *sweep_rows("dash", 0.0, 0.2, exact="11", speedup=1.696),
        *sweep_rows("key-norm", -1.0, 0.0, exact="11", speedup=1.69),
    ]
    append_rows(tmp_path / "frontier-small.jsonl", few)
    append_rows(tmp_path / "heldout-small.jsonl", sweep_rows(FASTER, 0.4, 0.6, exact="1", speedup=2.5))
    choices = [Choice(FAST, 1.7, 0.0, 1.0), Choice(FASTER, 2.5, 0.0, 1.0)]
    profile = SimpleNamespace(model="small", choices=choices, choose={1.7: FAST, 2.5: FASTER}.get, query_free=False)
    slow = [Choice("dash-layer", 1.5, 0.0, 1.0)]
    blind = SimpleNamespace(model="small", choices=slow, choose={1.5: "dash-layer"}.get, query_free=True)
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


def test_what_auto_keeps_stands_beside_what_dash_keeps(reached: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reached, "DASH", ("dash:none", "dash"))
    figures = "4 | 2 of 2 (2) | +0.20 \u00b1 0.10, median +0.20"
    auto, dash = reached.auto_table().splitlines()[2:]
    assert auto == f"| small | `auto` | 1.70x | {figures} |"
    assert dash.startswith("| small | `dash` | 1.70x | 4 | 2 of 2 (2) | +0.10")
    fast, faster, dash, blind = reached.choices_table().splitlines()[2:]
    assert fast == auto
    assert faster.startswith("| small | `auto:2.5` | 2.50x | 3 | 1 of 1 (1) | +0.50")
    assert blind.startswith("| small | `auto-query-free` | 1.50x | 4 | 1 of 2 (2) | +0.50")


def test_a_choice_that_was_not_measured_says_so(reached: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = SimpleNamespace(model="small", choices=[Choice("random:start=7", 1.7, 0.0, 1.0)], query_free=False)
    monkeypatch.setattr(reached, "shipped", lambda: [profile])
    assert reached.auto_table().splitlines()[2] == "| small | `auto` |  | not measured |  |  |"


def test_the_short_table_of_speed_has_long_prompts_of_two_methods() -> None:
    lines = page_tables.speed_table("bench-methods-h200").splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| {prompt}", f"`{method}`"] for prompt in ("16,384", "65,536") for method in ("max-sim", "dash")
    ]


def test_savings_on_images_are_shown_for_every_row() -> None:
    lines = page_tables.images_table("images-h100").splitlines()[2:]
    assert lines[0] == "| `dart-vit` | 35% | 0.562 / 0.248 | 44.2 | 70.4 | 16 | 216.7 / 69.2 | 490 / 175 |"
    assert len(lines) == 26
