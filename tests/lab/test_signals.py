"""Figure 7: bars of signals, from sweep rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from deltahalt import InputError
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.signals import SIGNALS, ablations, signals
from deltahalt.lab.rows.base import append_rows
from deltahalt.policies import POLICIES
from helpers.sweep_rows import row

AT = "start=11,pruning_ratio=0.667"
ROWS = [
    row("dense"),
    row(f"dash:{AT}", nll=3.0, exact=False),
    row(f"dash:{AT}", "b", nll=2.0),
    row(f"dash:{AT}", "c", "summary", nll=1.5, exact=False, full_exact=False),
    row(f"dash-layer:{AT}", nll=1.5),
    row(f"dash-layer:{AT}", "b", nll=1.5),
    row(f"dash-layer:{AT}", "c", "summary", nll=0.5, exact=False, full_exact=False),
]
ELSEWHERE = [
    row(f"{policy}:pruning_ratio=0.5,start=0.4", sample, task)
    for policy in ("dash", "random")
    for sample, task in {"a": "needle", "b": "needle", "c": "summary"}.items()
]


def test_a_bar_is_a_signal_s_mean_on_a_task() -> None:
    title, (ablation,) = ablations(ROWS)
    assert title == "small, n = 3"
    assert ablation.title == "start: layer 11, ratio: 0.667"
    assert list(ablation.bars) == ["dash", "dash-layer"]
    dash = ablation.bars["dash"]
    assert (dash["needle"].exact, dash["needle"].nll_change) == (0.5, pytest.approx(1.5))
    assert dash["summary"].nll_change == pytest.approx(0.5)


def test_policies_with_other_options_and_settings_of_one_signal_are_left_out() -> None:
    others = [f"dash:{AT},chunk=64", f"key-norm:{AT},keep_first=4", "random:start=3", f"dash:{AT}+dash:start=20"]
    assert ablations([*ROWS, *map(row, others)]) == ablations(ROWS)


def test_a_setting_is_what_the_policy_means_however_it_is_written() -> None:
    _, found = ablations([row("dash:start=0.4"), row("random:pruning_ratio=0.667"), row("uniform:pruning-ratio=0.667")])
    assert [(one.title, list(one.bars)) for one in found] == [
        ("start: 40 % of the layers, ratio: 0.667", ["dash", "random", "uniform"])
    ]


def test_settings_share_the_samples_that_all_have_rows_of() -> None:
    title, found = ablations([*ROWS, *ELSEWHERE[:2], *ELSEWHERE[3:5]])
    assert title == "small, n = 2 of 3 samples, those with rows of every policy"
    assert [one.title for one in found] == ["start: 40 % of the layers, ratio: 0.5", "start: layer 11, ratio: 0.667"]


def test_settings_come_by_number() -> None:
    starts = ["14", "4", "0.4", "0.25"]
    _, found = ablations([row(f"{name}:start={start}") for start in starts for name in ("dash", "random")])
    assert [one.title.partition(",")[0] for one in found] == [
        "start: 25 % of the layers",
        "start: 40 % of the layers",
        "start: layer 4",
        "start: layer 14",
    ]


def test_the_legend_names_the_signals_of_all_settings(figures: list[Figure], tmp_path: Path) -> None:
    at = {4: ("uniform", "dash"), 14: ("random", "dash")}
    signals([row(f"{name}:start={start}") for start, names in at.items() for name in names], tmp_path / "plot.svg")
    (legend,) = figures[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["full model", *(SIGNALS[name] for name in ("dash", "random", "uniform"))]


def test_bars_and_the_full_model_s_level_are_drawn(figures: list[Figure], tmp_path: Path) -> None:
    signals([*ROWS, *ELSEWHERE], tmp_path / "plot.svg")
    assert len(figures[0].axes) == 4
    exact, change = figures[0].axes[2:]
    assert [label.get_text() for label in exact.get_xticklabels()] == ["needle"]
    assert [label.get_text() for label in change.get_xticklabels()] == ["needle", "summary"]
    assert [bar.get_height() for bar in exact.patches] == [0.5, 1]
    assert [bar.get_height() for bar in change.patches] == pytest.approx([1.5, 0.5, 0.5, -0.5])
    assert [line[0][1] for line in exact.collections[0].get_segments()] == [1]
    assert len({bar.get_facecolor() for bar in exact.patches}) == 2


def test_the_relative_delta_has_the_delta_s_colour_and_a_hatch(figures: list[Figure], tmp_path: Path) -> None:
    signals([row(f"dash:{AT}"), row(f"dash:{AT},relative=true")], tmp_path / "plot.svg")
    delta, relative = figures[0].axes[0].patches
    assert delta.get_facecolor() == relative.get_facecolor()
    assert (delta.get_hatch(), relative.get_hatch()) == (None, "////")


def test_every_signal_with_a_name_is_a_policy_of_the_package() -> None:
    assert {signal.partition(":")[0] for signal in SIGNALS} <= POLICIES.keys() - {"dense"}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no start layer and ratio has rows of two signals"),
        ([row(f"dash:{AT}"), row("random:start=3")], "no start layer and ratio has rows of two signals"),
        ([*ROWS, row(f"random:{AT}", model="large")], "several models"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows: list[SweepRow], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        signals(rows, tmp_path / "plot.svg")


def test_plot_draws_it(deltahalt: Callable[..., int], tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [*ROWS, *ELSEWHERE])
    for out in ("one.svg", "two.svg"):
        assert deltahalt("plot", tmp_path / "rows.jsonl", "--figure", "signals", "--out", tmp_path / out) == 0
    drawn = (tmp_path / "one.svg").read_text()
    for text in ("block delta (dash-layer)", "full model", "start: layer 11, ratio: 0.667"):
        assert f">{text}</text>" in drawn
    assert drawn == (tmp_path / "two.svg").read_text()
