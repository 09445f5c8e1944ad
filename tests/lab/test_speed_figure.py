"""The figure of gains by the length of the prompt."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from deltahalt import InputError
from deltahalt.lab.bench.row import BenchRow, Cost
from deltahalt.lab.figures.speed import speed
from helpers.ran import RAN

COST = Cost(first_token=None, prefill=1.0, generation=None, total=1.0, flops=1.0, kv_bytes=1.0, peak_bytes=None)
ROW = BenchRow(
    model="m",
    policy="dash",
    prompt=4096,
    batch=1,
    new_tokens=1,
    full=COST,
    halted=COST,
    gain=replace(COST, prefill=1.5, flops=1.6),
    overhead=0.0,
    share=1.0,
    repeats=1,
    seed=0,
    **RAN,
)


def test_a_line_for_each_policy_in_order_of_length(figures: list[Figure], tmp_path: Path) -> None:
    longer = replace(ROW, prompt=16_384, gain=replace(COST, prefill=2.0, flops=1.9))
    other = replace(ROW, policy="max-sim:start=2")
    speed([longer, ROW, other, replace(ROW, batch=8, prompt=8192)], tmp_path / "plot.svg")
    (axes,) = figures[0].axes
    _, dash, dash_flops, other_line, _ = axes.lines
    assert (dash.get_label(), other_line.get_label()) == ("dash", "max-sim: l2")
    assert list(dash.get_xdata()) == [4096, 16_384]
    assert list(dash.get_ydata()) == [1.5, 2.0]
    assert list(dash_flops.get_ydata()) == [1.6, 1.9]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([replace(ROW, batch=8)], "no rows of single prompts"),
        ([ROW, replace(ROW, machine="CPU")], "several models or machines"),
    ],
    ids=["batches", "machines"],
)
def test_rows_that_cannot_be_drawn_together_are_refused(rows: list[BenchRow], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        speed(rows, tmp_path / "plot.svg")
