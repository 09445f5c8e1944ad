"""Rows of every kind in JSONL files, and the tables that `deltahalt report` makes of them."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deltahalt.errors import InputError, OutputError, RowsWarning
from deltahalt.lab.bench.row import BenchRow
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.tables import KINDS, markdown
from deltahalt.lab.rows.base import append_rows, read_rows, require_rows
from deltahalt.lab.rows.eval import EvalRow
from helpers.eval_rows import scored

SWEPT = SweepRow("s", "qa", "m", "dash", 9, 2, True, 1.0, True, 0.5, 1.0, 1.5, 1.6)


def test_every_kind_is_told_apart_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [SWEPT])
    append_rows(path, [scored("dense", 0.5)])
    assert read_rows(path, *KINDS) == [SWEPT, scored("dense", 0.5)]
    with pytest.raises(InputError, match="line 1: not a row of eval"):
        read_rows(path, EvalRow)
    sweep, evaluation = markdown(read_rows(path, *KINDS)).split("\n\n")
    assert "| `dash` | 1.60x | 1.00, +0.50 |" in sweep
    assert "| needle | 4096 | `dense` | 0.5000 |" in evaluation


def test_a_score_stands_beside_the_full_models_sample_by_sample(tmp_path: Path) -> None:
    full = scored("dense", 0.5, by_sample=(1.0, 0.0, 0.5))
    policy = scored("dash", 0.4, by_sample=(0.5, 0.2, 0.5))
    append_rows(tmp_path / "rows.jsonl", [full, policy])
    assert read_rows(tmp_path / "rows.jsonl", EvalRow) == [full, policy]
    head, _, first, second = markdown([full, policy]).splitlines()
    assert "| beside full |" in head
    assert "| `dense` | 0.5000 | 3 |  |" in first
    assert "| `dash` | 0.4000 | 3 | -0.1000 \u00b1 0.2082 |" in second
    assert "beside full" not in markdown([full, scored("dash", 0.4)])
    assert "beside full" not in markdown([full, scored("dash", 0.4, by_sample=(0.4, 0.4))])


def test_rows_without_a_kind_are_of_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(asdict(SWEPT)) + "\n", encoding="utf-8")
    assert read_rows(path, *KINDS) == [SWEPT]


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "other"}', '{"kind": "sweep", "sample": "s"}', '{"machine": 1}'])
def test_what_is_no_row_is_named_by_file_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [SWEPT])
    path.write_text(path.read_text() + line + "\n" + path.read_text(), encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: "):
        read_rows(path, *KINDS)
    with pytest.raises(InputError, match="there is no file"):
        read_rows(tmp_path / "none.jsonl", *KINDS)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"kind": "vision-bench", "model": "m"}', "kind 'vision-bench' is not one that this command reads"),
        ('{"kind": ["eval"]}', r"kind \['eval'\] is not one that this command reads"),
        ('{"kind": "eval", "task": "qa"}', "its fields are not those of kind 'eval'"),
        ('{"kind": "eval", "by_sample": 1}', "its fields are not those of kind 'eval'"),
        ('{"kind": "bench", "model": "m"}', "its fields are not those of kind 'bench'"),
        ('{"kind": "eval", "by_sample": "abc"}', "its fields are not those of kind 'eval'"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"\({complaint}\): give a file"):
        read_rows(path, *KINDS)


def test_efficiency_is_relative_to_the_full_model_of_the_same_run() -> None:
    full = scored("dense", 0.9, peak_bytes=30)
    halted = scored("dash", 0.8, prefill_seconds=4.0, generation_seconds=6.0, new_tokens=30, peak_bytes=20)
    lines = markdown([full, halted]).splitlines()
    assert lines[0].endswith("| score | samples | prefill | generation | total | throughput | memory |")
    assert lines[2].endswith("| `dense` | 0.9000 | 3 | 1.00x | 1.00x | 1.00x | 1.00x | 1.00x |")
    # Generation is 0.4 s a token against 0.2; throughput 83.3 tokens a second against 102.
    assert lines[3].endswith("| `dash` | 0.8000 | 3 | 2.00x | 2.00x | 1.20x | 1.22x | 1.50x |")


def test_methods_on_the_same_task_follow_each_other() -> None:
    rows = [scored(policy, 0.5, task=task) for policy in ("dense", "dash") for task in ("qa", "needle")]
    lines = markdown(rows).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["qa", "qa", "needle", "needle"]
    assert [line.split(" | ")[3] for line in lines] == ["`dense`", "`dash`"] * 2


@pytest.mark.parametrize("other", [{"task": "qa"}, {"machine": "y"}, {"samples": 4}, {"model": "y"}, {"max_length": 2}])
def test_other_runs_are_no_reference(other: dict[str, Any]) -> None:
    head, _, full, halted = markdown([scored("dense", 0.9, **other), scored("dash", 0.8)]).splitlines()
    assert "1.00x" in full
    assert "x |" not in halted.replace("x | needle", "")
    assert "prefill" in head


@pytest.mark.parametrize(
    ("other", "head", "cells"),
    [
        ({"halted_kv": "frozen"}, "halted K/V", "x frozen"),
        ({"min_prompt_tokens": 512}, "min prompt", "1 512"),
        ({"chat_template": True}, "chat format", "no yes"),
        ({"batch_size": "auto"}, "batch", "1 auto"),
        ({"max_length": 4096}, "max length", "1 4096"),
    ],
)
def test_a_way_to_run_is_shown_where_rows_of_a_task_differ_in_it(other: dict[str, Any], head: str, cells: str) -> None:
    rows = [scored("dash", 0.5), scored("dash", 0.4, **other)]
    heads, _, *lines = markdown(rows).splitlines()
    place = heads.split(" | ").index(head)
    assert heads.split(" | ")[place - 1 : place + 2] == ["policy", head, "score"]
    assert [line.split(" | ")[place] for line in lines] == cells.split()
    for apart in ({"task": "qa"}, {"model": "y"}):  # whose own way is the same for all
        assert head not in markdown([rows[0], scored("dash", 0.4, **other, **apart)])


def test_a_task_that_generates_nothing_has_no_efficiency() -> None:
    nothing = {"prefill_seconds": 0.0, "generation_seconds": 0.0, "prompt_tokens": 0, "new_tokens": 0}
    assert "throughput" not in markdown([scored("dense", 0.9, **nothing)])


def _written(path: Path, **other: Any) -> None:
    path.write_text(json.dumps({"kind": "sweep", **asdict(SWEPT), **other}) + "\n")


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"nll": float("nan")}, "nll is not a finite number"),
        ({"speedup": float("inf")}, "speedup is not a finite number"),
        ({"speedup": 10**400}, "speedup is not a finite number"),
        ({"nll": -0.5}, "nll is -0.5, below 0"),
        ({"prompt": -9}, "prompt is -9, below 0"),
        ({"prompt": "9"}, "prompt is text, not a whole number"),
        ({"prompt": 9.5}, "prompt is a number, not a whole number"),
        ({"speedup": "1.5"}, "speedup is text, not a number"),
        ({"speedup": True}, "speedup is true or false, not a number"),
        ({"exact": 1}, "exact is a whole number, not true or false"),
        ({"policy": ["dash"]}, "policy is a list, not text"),
        ({"policy": None}, "policy is null, not text"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_file_line_and_field(
    other: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    _written(path, **other)
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 1: not a row of sweep \({re.escape(complaint)}\)"):
        read_rows(path, SweepRow)


def test_values_inside_a_field_are_named_with_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    cost = {"first_token": None, "prefill": 1.0, "generation": None, "total": 1.0} | dict.fromkeys(
        ("flops", "kv_bytes", "peak_bytes"), 1.0
    )
    ran = dict.fromkeys(("dtype", "attention", "machine", "deltahalt", "transformers", "torch"), "x")
    row = {"kind": "bench", "model": "m", "policy": "dash", "prompt": 9, "batch": 1, "new_tokens": 1, "seed": -1}
    row |= {"full": cost, "halted": cost, "gain": cost, "overhead": -0.1, "share": 1.0, "repeats": 1} | ran
    path.write_text(json.dumps(row))
    assert read_rows(path, BenchRow)
    for seconds, complaint in ((-1.0, "is -1.0, below 0"), ("1", "is text, not a number"), (math.nan, "is not a fin")):
        path.write_text(json.dumps(row | {"halted": cost | {"prefill": seconds}}))
        with pytest.raises(InputError, match=f"halted.prefill {complaint}"):
            read_rows(path, BenchRow)
    path.write_text(json.dumps({"kind": "eval", **asdict(scored("dash", -0.5, by_sample=(-1.0, math.inf)))}))
    with pytest.raises(InputError, match=r"by_sample\[1\] is not a finite number"):
        read_rows(path, EvalRow)


def test_a_row_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for other in ({"nll": math.nan}, {"model": "\udce9"}):
        with pytest.raises(InputError, match="this sweep row cannot be stored: "):
            append_rows(path, [replace(SWEPT, **other)])
    assert not path.exists()


@pytest.mark.parametrize("half", ['{"kind": "swe', '{"kind": "sweep", "a": {"b": 1}', "{"])
def test_half_a_row_at_the_end_is_set_aside(half: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [SWEPT])
    path.write_text(path.read_text() + half)
    with pytest.warns(RowsWarning, match=r"rows\.jsonl, line 2: this row is incomplete"):
        assert read_rows(path, SweepRow) == [SWEPT]
    with pytest.warns(RowsWarning, match=r"an incomplete row at the end of .* was moved to .*rows\.jsonl\.half"):
        append_rows(path, [SWEPT])
    assert read_rows(path, SweepRow) == [SWEPT, SWEPT]
    assert (tmp_path / "rows.jsonl.half").read_text() == half + "\n"


def test_a_whole_last_row_without_a_line_feed_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [SWEPT])
    path.write_text(path.read_text().rstrip("\n"))
    append_rows(path, [SWEPT])
    assert read_rows(path, SweepRow) == [SWEPT, SWEPT]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_half_a_row_before_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [SWEPT])
    path.write_text('{"kind": "swe\n' + path.read_text())
    with pytest.raises(InputError, match="line 1: it is not JSON"):
        read_rows(path, SweepRow)


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="there is no /dev/full here, which a full disk is tried with"
)
def test_a_full_disk_is_a_typed_error() -> None:
    with pytest.raises(OutputError, match="cannot write /dev/full: No space left on device"):
        append_rows(Path("/dev/full"), [SWEPT])


def test_rows_are_added_to_a_file_of_rows_alone(tmp_path: Path) -> None:
    document, empty, packed = tmp_path / "document.txt", tmp_path / "empty.jsonl", tmp_path / "rows.jsonl.gz"
    document.write_text("Not rows.\n")
    empty.touch()
    for file in (empty, tmp_path / "new.jsonl"):
        require_rows(file, SweepRow)
    with pytest.raises(InputError, match="line 1: it is not JSON"):
        require_rows(document, SweepRow)
    for wants in (lambda: require_rows(packed, SweepRow), lambda: append_rows(packed, [SWEPT])):
        with pytest.raises(InputError, match=r"which is compressed: name a \.jsonl file"):
            wants()
    assert not packed.exists()
