"""The commands that measure, and what they show, on a tiny model."""

import json
from pathlib import Path

import pytest

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.rows.base import read_rows
from helpers.command import TEXT, deltahalt


def test_bench_writes_rows_that_report_reads(
    tiny_folder: Path, tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    sizes = ["--lengths", "200,300", "--batch-sizes", "1,2", "--new-tokens", "3"]
    options = ["--policies", "dash uniform:start=1", *sizes, "--text", document, "--repeats", "1", "--rows", str(rows)]
    assert deltahalt("bench", "--model", str(tiny_folder), *options) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("2 x 300 tokens", "uniform:start=1", "first", "share", "1 threads of"))
    measured = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["batch"], row["policy"]) for row in measured[::2]] == [(1, "dash")] * 2 + [(2, "dash")] * 2
    assert [row["prompt"] for row in measured[1::2]] == pytest.approx([200, 300] * 2, abs=2)
    for row in measured:
        assert (row["new_tokens"], row["dtype"], row["attention"], row["repeats"]) == (3, "bfloat16", "sdpa", 1)
        assert row["gain"]["prefill"] == pytest.approx(row["full"]["prefill"] / row["halted"]["prefill"])
    assert deltahalt("report", str(rows)) == 0
    assert "| `uniform:start=1` | 2 x 300 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--lengths", "20,100000"], "takes 512 tokens"),
        (["--policies", "dash llmlingua2:encoder=/no/such"], "cannot load the encoder /no/such"),
        (["--policies", "dash:start=9"], "leaves no deeper layer"),
        (["--rows", "/"], "cannot write to /, since / is a folder:"),
        (["--rows", "/dev/null/rows.jsonl"], "cannot write to /dev/null/rows.jsonl"),
    ],
)
def test_bench_refuses_what_cannot_run_before_anything_is_measured(
    options: list[str],
    complaint: str,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("deltahalt.lab.bench.measure.measure", lambda *_, **__: pytest.fail("measured"))
    sizes = ["--lengths", "20", "--new-tokens", "3"]
    assert deltahalt("bench", "--model", str(tiny_folder), *sizes, *options) == 2
    assert complaint in capsys.readouterr().err


def test_bench_of_a_shape_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, shape = tmp_path / "rows.jsonl", "4,32,48,2,1,16"
    options = ["--shape", shape, "--lengths", "150", "--new-tokens", "1", "--repeats", "1", "--attention", "eager"]
    assert deltahalt("bench", *options, "--dtype", "bfloat16", "--policies", "dash", "--rows", str(rows)) == 0
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert (row["model"], row["dtype"], row["attention"]) == (f"random {shape}", "bfloat16", "eager")
    assert row["full"]["generation"] is None
    assert deltahalt("bench", *options, "--text", "README.md") == 2
    assert "leave --text out" in capsys.readouterr().err
    assert deltahalt("bench", *options, "--dtype", "int8") == 2
    assert "unknown dtype int8" in capsys.readouterr().err


def test_sweep_measures_every_setting(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, rows = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"task": "qa", "prompt": TEXT, "answer": "a file"}))
    options = ["--policies", "dash random:start=2", "--starts", "0.2,0.5", "--ratios", "0.5", "--data", str(data)]
    assert deltahalt("sweep", "--model", str(tiny_folder), "--rows", str(rows), *options) == 0
    assert len(rows.read_text().splitlines()) == 3
    assert "random:pruning_ratio=0.5,start=2" in capsys.readouterr().out


def test_tables_of_a_narrow_terminal_show_whole_policies(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data, policy = tmp_path / "samples.jsonl", "dash:start=0,pruning_ratio=0.5,keep_first=4,keep_last=8"
    data.write_text(json.dumps({"task": "qa", "prompt": TEXT, "answer": "a file"}))
    options = ["--model", str(tiny_folder), "--data", str(data), "--policies", policy]
    assert deltahalt("sweep", "--rows", str(tmp_path / "rows.jsonl"), *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.split("\u2502")[1].strip() for line in lines if line.startswith("\u2502")) == policy


def test_report_shows_the_frontier_of_a_sweep(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"task": "qa", "prompt": TEXT, "answer": "a file"}))
    policies = (
        "dense uniform:start=1,pruning_ratio=0.9 uniform:start=3,pruning_ratio=0.2 uniform:start=4,pruning_ratio=0.1"
    )
    options = ["--data", str(data), "--policies", policies]
    assert deltahalt("sweep", "--model", str(tiny_folder), "--rows", str(rows), *options) == 0
    capsys.readouterr()
    assert deltahalt("report", str(rows)) == 0
    whole = capsys.readouterr().out.splitlines()
    assert deltahalt("report", str(rows), "--frontier") == 0
    best = capsys.readouterr().out.splitlines()
    assert set(best) <= set(whole)
    assert any("`dense`" in line for line in best)
    assert any("start=1" in line for line in best)  # the fastest is always on it


@pytest.mark.parametrize("speedup", ["fast", "1", "0.5,2"])
def test_a_speedup_that_is_none_is_refused(speedup: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("calibrate", "--out", str(tmp_path / "p.json"), "--target-speedup", speedup) == 2
    assert "speedup" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["calibrate --rows rows.jsonl --out", "calibrate --out p.json --rows", "sweep --rows", "observe --rows"],
)
def test_a_file_that_cannot_be_written_is_named_before_a_model_is_loaded(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deltahalt(*command.split(), "/dev/null/file", "--model", "no/such") == 2
    assert "cannot write to /dev/null/file, since /dev/null is a file: give another path" in capsys.readouterr().err


def columns(lines: list[str], border: str) -> list[str]:
    """The cells between `border` of a table's head, or of its only row, which may be folded."""
    parts = [line.split(border)[1:-1] for line in lines if line.startswith(border)]
    return [" ".join(" ".join(cell).split()) for cell in zip(*parts, strict=True)]


def test_speedup_is_the_same_ratio_in_sweep_and_report(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"task": "qa", "prompt": TEXT, "answer": "a file"}))
    options = ["--data", str(data), "--policies", "uniform:start=1,pruning_ratio=0.9"]
    assert deltahalt("sweep", "--model", str(tiny_folder), "--rows", str(rows), *options) == 0
    shown = capsys.readouterr().out.splitlines()
    swept = dict(zip(columns(shown, "┃"), columns(shown, "│"), strict=True))
    assert deltahalt("report", str(rows)) == 0
    heads, _, cells = (line.split(" | ") for line in capsys.readouterr().out.strip().splitlines())
    assert dict(zip(heads, cells, strict=True))["speedup"] == swept["speedup"] != swept["own speedup"]
    (row,) = read_rows(rows, SweepRow)
    assert swept["speedup"] == f"{row.reference_speedup:.2f}x"


MODES = {mode: [mode] for mode in ("--new-lengths", "--readout", "--decode", "--profile")}
MODES["--piece-tokens"] = ["--piece-tokens", "16"]


@pytest.mark.parametrize("mode", MODES)
def test_bench_refuses_what_a_mode_cannot_measure_before_a_model_is_built(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deltahalt.lab.bench.shape.random_model", lambda *_, **__: pytest.fail("built"))
    monkeypatch.setattr("deltahalt.cli.speed.load_model", lambda *_, **__: pytest.fail("loaded"))
    other = "--decode" if mode == "--readout" else "--readout"
    shape = ["--shape", "4,32,48,2,1,16"]
    refused = [
        ([*shape, other], "measure different things: give one of them"),
        (["--text", "a.md"], "leave --text out"),
    ]
    if mode not in ("--readout", "--decode"):
        refused.append(([*shape, "--batch-sizes", "2"], f"{mode} measures single prompts: leave --batch-sizes out"))
    for options, complaint in refused:
        assert deltahalt("bench", *MODES[mode], *options) == 2
        assert complaint in " ".join(capsys.readouterr().err.split())
