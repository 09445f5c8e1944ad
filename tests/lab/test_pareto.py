"""The plot of accuracy against speed: what is drawn, and how methods look and are named."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from deltahalt import InputError
from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.figures.house import DRAWN, check_plot, drawn, looks
from deltahalt.lab.figures.names import legend, method, short
from deltahalt.lab.figures.pareto import pareto
from deltahalt.methods.registry import METHODS
from deltahalt.policies import POLICIES
from deltahalt.vision.policies import VISION_POLICIES
from helpers.sweep_rows import DASH, KEYS, ROWS, STAGES, row


def test_stages_are_a_method_of_their_own() -> None:
    assert method(DASH) == "dash"
    assert method(STAGES) == "two stages: key-norm, window-attention"
    assert method("dash:start=1+dash:start=2+dash:start=3") == "three stages: dash"


def test_a_label_is_short() -> None:
    assert short(DASH) == "l11 \u03c1.667"
    assert short(KEYS) == "l25% \u03c1.5 keep first 8"
    assert short(STAGES) == "l7 \u03c1.5\n+ l14 \u03c1.9 chunk 16"


def test_a_legend_names_the_method_and_its_options() -> None:
    assert legend(DASH) == "dash: l11 \u03c1.667"
    assert legend("dash") == "dash"
    assert legend("auto:2.5") == "auto: 2.5"


def test_a_stage_without_options_is_named() -> None:
    assert short("dash") == "dash"
    assert short("dash:start=3+d3") == "l3\n+ d3"


def test_a_long_label_is_broken_between_options() -> None:
    policy = "max-sim:start=2,pruning_ratio=0.425,chunk=64,keep_first=256,keep_last=128,window=16,kernel=129+d3:start=9"
    assert short(policy).split("\n") == [
        "l2 \u03c1.425 chunk 64 keep first 256",
        "keep last 128 window 16 kernel 129",
        "+ l9",
    ]


def test_the_svg_names_methods_axes_and_the_frontier(tmp_path: Path) -> None:
    beaten = row("random:start=3", nll=4.0, exact=False, reference_speedup=1.4)
    pareto([*ROWS, beaten], tmp_path / "new" / "plot.svg")
    drawn = (tmp_path / "new" / "plot.svg").read_text(encoding="utf-8")
    names = ["dash", "key-norm", "random", "two stages: key-norm, window-attention", "full model", "frontier"]
    axes = ["share of exact answers (up is better)", "NLL change, nats per token (up is better)", "small, n = 1"]
    for text in [*names, *axes, short(DASH), short(KEYS), *short(STAGES).split("\n")]:
        assert f">{text}</text>" in drawn
    assert ">l3</text>" not in drawn
    assert ">dense</text>" not in drawn


@pytest.fixture
def draw(figures: list[Figure], tmp_path: Path) -> Callable[[list[SweepRow]], Figure]:
    """Draws rows, and gives the figure in place of a file."""

    def run(rows: list[SweepRow]) -> Figure:
        pareto(rows, tmp_path / "plot.svg")
        return figures[-1]

    return run


def test_up_and_right_is_better_in_both_panels(draw: Callable[[list[SweepRow]], Figure]) -> None:
    exact, change = draw(ROWS).axes
    assert not exact.yaxis_inverted()
    assert change.yaxis_inverted()
    assert exact.get_xlim() == change.get_xlim()
    assert not change.xaxis_inverted()
    empty, change = draw([row(DASH, exact=False, full_exact=False)]).axes
    assert empty.get_xlim() == change.get_xlim()


def test_the_frontier_is_a_step_line_through_its_points(draw: Callable[[list[SweepRow]], Figure]) -> None:
    exact, change = ({line.get_label(): line for line in axes.lines} for axes in draw(ROWS).axes)
    assert list(zip(*exact["frontier"].get_data(), strict=True)) == [(2.0, 1.0), (2.5, 0.0)]
    assert list(change["frontier"].get_xdata()) == [1.5, 2.0, 2.5]
    assert list(change["frontier"].get_ydata()) == pytest.approx([0.2, 0.5, 2.0])
    assert exact["frontier"].get_drawstyle() == change["frontier"].get_drawstyle() == "steps-pre"
    assert (exact["full model"].get_ydata()[0], change["full model"].get_ydata()[0]) == (1, 0)


def test_each_method_has_its_own_colour_and_marker(draw: Callable[[list[SweepRow]], Figure]) -> None:
    names = [name for name in DRAWN if name in POLICIES.keys() - {"dense"} and POLICIES[name].scope == "all"]
    (legend,) = draw([row(name) for name in [*names, STAGES, "dash:start=1+dash:start=9"]]).legends
    methods = [line for line in legend.get_lines() if line.get_label() not in {"frontier", "full model"}]
    assert len(methods) == len(names) + 2
    assert len({line.get_color() for line in methods}) == len({line.get_marker() for line in methods}) == len(methods)


def test_a_method_of_any_stage_looks_the_same_in_every_figure_and_unlike_all_others() -> None:
    def look(name: str, *drawn_with: str) -> tuple[str, str]:
        line = looks([*drawn_with, f"{name}:start=3"])[name]
        return line.get_color(), line.get_marker()

    every = [name for name in (*METHODS, *VISION_POLICIES) if name != "dense"]
    alone = [look(name) for name in every]
    assert alone == [look(name, STAGES, *every) for name in every]
    assert len({(line.get_color(), line.get_marker()) for line in looks([*every, STAGES]).values()}) == len(every) + 1


def test_policies_that_meet_on_the_frontier_share_a_label(tmp_path: Path) -> None:
    pareto([row(DASH), row("uniform:start=12,keep_first=8")], tmp_path / "plot.svg")
    assert f">{short(DASH)} or 1 more</text>" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_what_all_stages_share_is_said_once_and_on_no_label(draw: Callable[[list[SweepRow]], Figure]) -> None:
    tails = ("start=7,chunk=16,keep_first=8", "chunk=16,start=3,keep_first=8")
    figure = draw(
        [row(f"dash:{tails[0]}"), row(f"dash:{tails[1]}+key-norm:{tails[0]}", reference_speedup=3.0, nll=2.0)]
    )
    assert {text.get_text() for text in figure.axes[1].texts} == {"l7", "l3\n+ l7"}
    said = figure.legends[0].get_title().get_text().split("\n")[1]
    assert said == "all with options beyond l and \u03c1: chunk 16 keep first 8"
    (alone,) = draw([row(f"dash:{tails[0]}"), row("d3:start=20", exact=False, nll=9.0)]).axes[0].texts
    assert alone.get_text() == "l7 chunk 16 keep first 8"


def test_stages_with_no_more_than_a_start_layer_and_a_ratio_stop_no_sharing(
    draw: Callable[[list[SweepRow]], Figure],
) -> None:
    shared = "chunk=64,keep_first=256,keep_last=128,window=16,power=3,standardize=true"
    rows = [
        row(f"max-sim:start=2,pruning_ratio={ratio},{shared},kernel={kernel}{then}", nll=nll, reference_speedup=speed)
        for ratio, kernel, then, nll, speed in [
            (0.425, 129, "", 1.2, 1.5),
            (0.048, 193, "+forecast:start=16,pruning_ratio=1", 2.0, 2.5),
        ]
    ]
    figure = draw(rows)
    assert {text.get_text() for text in figure.axes[1].texts} == {
        "l2 \u03c1.425 kernel 129",
        "l2 \u03c1.048 kernel 193\n+ l16 \u03c11",
    }
    assert "power 3" in figure.legends[0].get_title().get_text()


def test_a_suffix_names_the_format(tmp_path: Path) -> None:
    pareto(ROWS, tmp_path / "plot.PNG")
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_rows_give_the_same_file_whatever_the_users_style(suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    pareto(ROWS, first)
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.hashsalt": "other"}):
        before = dict(mpl.rcParams)
        pareto(ROWS[::-1], second)
        assert dict(mpl.rcParams) == before
    assert first.read_bytes() == second.read_bytes()


def test_a_file_holds_neither_the_day_nor_the_librarys_version(tmp_path: Path) -> None:
    for name in ("plot.svg", "plot.png"):
        pareto(ROWS, tmp_path / name)
        written = (tmp_path / name).read_bytes()
        assert b"dc:date" not in written
        assert mpl.__version__.encode() not in written


def test_without_an_exact_answer_of_the_full_model_the_nll_is_still_drawn(tmp_path: Path) -> None:
    pareto([row(DASH, exact=False, full_exact=False)], tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "the full model answers none exactly" in drawn
    assert drawn.count(f">{short(DASH)}</text>") == 1


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "svg"])
def test_another_format_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.svg or \.png"):
        check_plot(Path(name))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"deltahalt\[plot\]"):
        pareto(ROWS, tmp_path / "plot.svg")


def test_a_long_title_is_broken_so_that_nothing_is_cut_off(tmp_path: Path) -> None:
    with drawn(tmp_path / "long.png", "a word " * 30, (5, 3)) as figure:
        figure.draw_without_rendering()
        assert figure.bbox.x1 > figure._suptitle.get_window_extent().x1  # type: ignore[attr-defined]
