"""The tables of README.md and docs/ that come of committed rows."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.rows.base import append_rows
from deltahalt.profile import Choice
from helpers.eval_rows import scored
from helpers.ran import RAN
from helpers.sweep_rows import row
from tools import page_tables, shapes_table
from tools.briefly import brief
from tools.page_tables import RECORD

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
        "real",
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


def shape_rows(
    policy: str, speedup: float, *scores: float, full: float = 1.0, shape: str = "question-last"
) -> list[ShapeRow]:
    """A row for each score, of prompts that the full model rates `full`."""
    return [
        ShapeRow(
            shape=shape,
            seed=number,
            held_out=True,
            model="small",
            policy=policy,
            sample=f"{shape} {number}",
            prompt=900,
            answer_tokens=9,
            score=score,
            full_score=full,
            said="",
            nll=1.5,
            full_nll=1.0,
            speedup=speedup,
            reference_speedup=speedup,
            **RAN,
        )
        for number, score in enumerate(scores)
    ]


def test_right_answers_stand_by_shape_and_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [Choice("random:start=2", 1.7, 0.0, 1.0), Choice("random:start=1", 2.5, 0.0, 1.0)]
    profiles = [SimpleNamespace(model="small", choices=choices, query_free=False)]
    monkeypatch.setattr(shapes_table, "shipped", lambda: profiles)
    rows = shape_rows("random:start=1", 2.5, 0.5, 1.0) + shape_rows("dash", 1.7, 0.0, 1.0)
    rows += shape_rows("random:start=1", 2.5, 1.0, full=0.0, shape="counting")
    rows += shape_rows("dash", 1.7, 0.0, full=0.0, shape="counting")
    assert shapes_table.shapes_table(rows).splitlines() == [
        "| shape | prompts | full model | `auto:2.5` 2.5x | `dash` 1.7x |",
        "|---|---|---|---|---|",
        "| question-last | 2 | 2 | 1.5 | 1 |",
        "| (counting) | 1 | 0 | 1 | 0 |",
        "| **right answers** | 2 | 100 % | 75 % | 50 % |",
        "| **change** |  |  | -25.0 \u00b1 25.0 | -50.0 \u00b1 50.0 |",
        "| **NLL change** |  |  | +0.50 \u00b1 0.00 | +0.50 \u00b1 0.00 |",
    ]


def test_nll_stands_by_policy_and_place_of_the_question() -> None:
    tasks = ("exam/last", "exam/last", "exam/first", "exam/first", "exam/tail", "exam/tail", "lb-code", "lb-code")
    rows = [
        replace(row(policy, task=task, reference_speedup=speedup), sample=str(number), nll=1 + change, full_nll=1.0)
        for policy, speedup, change in (("dash", 2.5, 0.5), ("bm25", 1.7, 0.25))
        for number, task in enumerate(tasks)
    ]
    head, _, bm25, dash = shapes_table.real_table(rows).splitlines()
    assert head == (
        "| policy | all prompts (8) | question last (2) | question first (2) | instructions after it (2) "
        "| MiniLongBench (2) |"
    )
    assert bm25 == "| `bm25` 1.7x |" + " +0.25 \u00b1 0.00 |" * 5
    assert dash == "| `dash` 2.5x |" + " +0.50 \u00b1 0.00 |" * 5


def test_the_table_of_speed_has_the_methods_that_a_target_measures() -> None:
    lines = page_tables.speed_table("record-h200").splitlines()[2:]
    shown = {tuple(line.strip("| ").split(" | ")[:2]) for line in lines}
    prompts = ("4,096", "8,192", "16,384", "65,536", "131,072", "8 x 16,384")
    assert shown == {(prompt, name) for prompt in prompts for name in RECORD.values()}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    written = makefile.partition("RECORD := ")[2].partition("\nRECORD_ROWS")[0].replace("\\", "").split()
    assert sorted(written) == sorted(RECORD)


def test_the_short_table_of_speed_has_four_rows_of_auto() -> None:
    lines = page_tables.short_speed_table("record-h200").splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        [f"| {prompt}", name] for prompt in ("16,384", "131,072") for name in ("`auto`, 1.7x", "`auto:2.5`")
    ]


def test_savings_on_images_are_shown_for_every_row() -> None:
    lines = page_tables.images_table("images-h100").splitlines()[2:]
    assert lines[0] == "| `dart-vit` | 35% | 0.562 / 0.248 | 44.2 | 70.4 | 16 | 216.7 / 69.2 | 490 / 175 |"
    assert len(lines) == 26
