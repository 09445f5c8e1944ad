"""`deltahalt plot` and `deltahalt sweep --plot`: rows in files become a picture, or are refused."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.pareto import pareto
from helpers.extras import needs_matplotlib
from helpers.sweep_rows import ROWS

pytestmark = needs_matplotlib


def write(file: Path, rows: list[SweepRow]) -> Path:
    file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    return file


def test_plot_joins_files_of_rows(deltahalt: Callable[..., int], tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", ROWS[:3]), write(tmp_path / "two.jsonl", ROWS[2:])
    assert deltahalt("plot", one, two, "--out", tmp_path / "joined.svg") == 0
    pareto(ROWS, tmp_path / "whole.svg")
    assert (tmp_path / "joined.svg").read_bytes() == (tmp_path / "whole.svg").read_bytes()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no file"),
        ("{\n", "line 1: it is not JSON"),
        ('{"machine": "fast"}', "not a row of sweep"),
        ("", "no rows of a policy"),
    ],
)
def test_plot_refuses_what_holds_no_rows(
    content: str | None,
    complaint: str,
    deltahalt: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    assert deltahalt("plot", tmp_path / "rows.jsonl", "--out", tmp_path / "plot.svg") == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("figure", ["pareto", "signals"])
def test_plot_refuses_a_picture_it_cannot_write(
    figure: str, deltahalt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS)
    assert deltahalt("plot", rows, "--figure", figure, "--out", "/dev/null/plot.svg") == 2
    assert "cannot write to /dev/null/plot.svg" in capsys.readouterr().err


def test_sweep_draws_what_it_measured(deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path) -> None:
    data, rows, drawn = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl", tmp_path / "plot.svg"
    data.write_text(json.dumps({"task": "qa", "prompt": "The tide is in. " * 12, "answer": "at noon"}))
    options = ["--policies", "dense random:start=2,keep_first=4,keep_last=8", "--data", data, "--plot", drawn]
    assert deltahalt("sweep", "--model", tiny_folder, "--rows", rows, *options) == 0
    assert ">random</text>" in drawn.read_text(encoding="utf-8")


def test_sweep_refuses_a_plot_it_cannot_draw_before_it_measures(
    deltahalt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deltahalt("sweep", "--model", "no/such", "--rows", tmp_path / "rows.jsonl", "--plot", "plot.pdf") == 2
    assert "plot cannot be written to plot.pdf" in capsys.readouterr().err
