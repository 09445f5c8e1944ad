"""The figure of vLLM with halting beside stock vLLM."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from deltahalt import InputError
from deltahalt.lab.bench.serving import STOCK, ServingRow
from deltahalt.lab.figures.serving import compare, serving
from deltahalt.lab.rows.base import append_rows
from helpers.serving_rows import ROW

BOTH = "both-ends:start=2,pruning_ratio=0.64,chunk=64"
DASH = replace(ROW, policy="dash", first_token=0.215, per_second=4.2)
LONG = replace(ROW, prompt=65_536, first_token=2.7, token=None, per_second=None, requests=None, new_tokens=None)
LONG_DASH = replace(LONG, policy="dash", first_token=0.9)
ENDS = replace(ROW, policy=BOTH, first_token=0.172, per_second=5.0)
ROWS = [LONG_DASH, DASH, ROW, ENDS, LONG]
OTHERS: list[dict[str, Any]] = [
    {"model": "large"},
    {"machine": "CPU"},
    {"dtype": "float32"},
    {"vllm": "0.32.0"},
    {"gpus": 2},
    {"http": True},
    {"mode": "eager"},
]


def test_gains_are_lines_and_rates_are_bars_in_the_same_colours(figures: list[Figure], tmp_path: Path) -> None:
    serving(ROWS, tmp_path / "plot.svg")
    left, right = figures[0].axes
    stock, dash, ends = left.lines
    assert [line.get_label() for line in left.lines] == [
        STOCK,
        "dash",
        "both-ends: l2 \N{GREEK SMALL LETTER RHO}.64 chunk 64",
    ]
    assert list(stock.get_ydata()) == [1, 1]
    assert list(dash.get_xdata()) == [16_384, 65_536]
    assert list(dash.get_ydata()) == pytest.approx([2.0, 3.0])
    assert list(ends.get_xdata()) == [16_384]
    assert list(ends.get_ydata()) == pytest.approx([2.5])
    assert left.get_xscale() == "log"
    bars = [bar for (bar,) in right.containers]
    assert [bar.get_height() for bar in bars] == [2.1, 4.2, 5.0]
    colours = [bar.get_facecolor() for bar in bars]
    assert colours == [pytest.approx(to_rgba(line.get_color())) for line in left.lines]
    assert [label.get_text() for label in right.get_xticklabels()] == ["16,384"]
    assert right.get_ylabel() == "requests finished per second\n(24 at once, 128 new tokens each)"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [line.get_label() for line in left.lines]


def test_bars_of_several_lengths_are_groups(figures: list[Figure], tmp_path: Path) -> None:
    load = {"requests": 24, "new_tokens": 128}
    longer = [replace(LONG, per_second=0.5, **load), replace(LONG_DASH, per_second=1.5, **load)]
    serving([*longer, ROW, DASH, ENDS], tmp_path / "plot.svg")
    _, right = figures[0].axes
    middles = [[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in right.containers]
    assert [[bar.get_height() for bar in bars] for bars in right.containers] == [[2.1, 0.5], [4.2, 1.5], [5.0]]
    assert middles == [pytest.approx([-0.28, 0.72]), pytest.approx([0, 1]), pytest.approx([0.28])]
    assert [label.get_text() for label in right.get_xticklabels()] == ["16,384", "65,536"]


def test_without_rates_there_is_one_panel(figures: list[Figure], tmp_path: Path) -> None:
    serving([LONG, LONG_DASH], tmp_path / "plot.svg")
    (axes,) = figures[0].axes
    assert [line.get_label() for line in axes.lines] == [STOCK, "dash"]


def test_rows_without_a_counterpart_and_of_a_set_memory_do_not_count() -> None:
    served = compare(ROWS)
    memory = [replace(row, gibibytes=9, at_once=10, first_token=9.0) for row in (ROW, DASH, ENDS)]
    alone = [replace(row, **other) for row, other in zip([ROW, *6 * [DASH]], OTHERS, strict=True)]
    assert compare([*ROWS, *memory, *alone, replace(LONG, prompt=4096), replace(DASH, prompt=8192)]) == served
    assert served.title == "m, bfloat16 on GPU, vLLM 0.26.0"
    assert list(served.rates) == [STOCK, "dash", BOTH]


def test_of_equal_rows_the_last_counts() -> None:
    assert compare([replace(ROW, first_token=9.0), replace(DASH, per_second=9.0), *ROWS]) == compare(ROWS)


@pytest.mark.parametrize(
    ("other", "named"), [({"gpus": 2}, "2 GPUs"), ({"http": True}, "over HTTP"), ({"mode": "eager"}, "mode eager")]
)
def test_the_title_names_settings_that_are_not_the_usual(other: dict[str, Any], named: str) -> None:
    assert compare([replace(row, **other) for row in ROWS]).title == f"m, bfloat16 on GPU, vLLM 0.26.0, {named}"


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_rows_of_several_settings_are_refused(other: dict[str, Any], tmp_path: Path) -> None:
    rows = [*ROWS, *(replace(row, **other) for row in (LONG, LONG_DASH))]
    with pytest.raises(InputError, match=r"several models or settings \(.*; .*\): give rows of only one"):
        serving(rows, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no rows of a policy and of stock vLLM"),
        ([ROW, LONG], "no rows of a policy and of stock vLLM"),
        ([ROW, LONG_DASH], "no rows of a policy and of stock vLLM"),
        ([replace(ROW, gibibytes=9), replace(DASH, gibibytes=9)], "no rows of a policy and of stock vLLM"),
        ([ROW, replace(DASH, requests=8)], r"24 at once, 128 new tokens each; 8 at once, 128 new tokens each"),
        ([ROW, replace(DASH, new_tokens=64)], "rows of different requests"),
    ],
    ids=["none", "stock", "lengths", "memory", "requests", "tokens"],
)
def test_rows_that_cannot_be_compared_are_refused(rows: list[ServingRow], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        serving(rows, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_plot_draws_it(deltahalt: Callable[..., int], tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", ROWS)
    for out in ("one.svg", "two.svg"):
        assert deltahalt("plot", tmp_path / "rows.jsonl", "--figure", "serving", "--out", tmp_path / out) == 0
    drawn = (tmp_path / "one.svg").read_text()
    assert ">m, bfloat16 on GPU, vLLM 0.26.0</text>" in drawn
    assert drawn == (tmp_path / "two.svg").read_text()
