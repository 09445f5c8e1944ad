"""The plot of accuracy against speed: what is compared, what is on the frontier, what is drawn."""

import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import combinations, permutations
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.path import Path as MplPath
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from deltahalt import InputError
from deltahalt.evaluation.sweep import SweepRow
from deltahalt.figures.comparison import Point, compare, frontier
from deltahalt.figures.house import check_plot, drawn, looks
from deltahalt.figures.labels import Sheet, Spot, place_labels
from deltahalt.figures.names import method, short
from deltahalt.figures.pareto import pareto
from deltahalt.methods import METHODS
from deltahalt.policies import POLICIES
from deltahalt.vision.policies import VISION_POLICIES

DASH, KEYS = "dash:start=11,pruning_ratio=0.667", "key-norm:pruning_ratio=0.5,start=0.25,keep_first=8"
STAGES = "key-norm:start=7,pruning_ratio=0.5+window-attention:start=14,pruning_ratio=0.9,chunk=16"


def row(policy: str, sample: str = "a", task: str = "needle", **values: object) -> SweepRow:
    """A row of a policy that is 2x as fast as the full model and as good."""
    plain = SweepRow(
        sample=sample,
        task=task,
        model="small",
        policy=policy,
        prompt=100,
        answer_tokens=2,
        exact=True,
        nll=1.0,
        full_exact=True,
        full_nll=1.0,
        agreement=1.0,
        speedup=3.0,
        reference_speedup=2.0,
    )
    return replace(plain, **values)  # type: ignore[arg-type]


ROWS = [
    row("dense", reference_speedup=1.0),
    row(DASH, nll=1.5),
    row(KEYS, nll=1.2, reference_speedup=1.5),
    row(STAGES, nll=3.0, exact=False, reference_speedup=2.5),
]


def points(*values: tuple[float, float]) -> list[Point]:
    return [Point(f"policy {index}", *value) for index, value in enumerate(values)]


def test_a_point_that_another_beats_is_not_on_the_frontier() -> None:
    fast, good, beaten = points((2.0, 0.5), (1.5, 0.9), (1.4, 0.4))
    for order in permutations([fast, good, beaten]):
        assert frontier(order) == [good, fast]


@pytest.mark.parametrize("worse", [(2.0, 0.4), (1.9, 0.5)])
def test_a_tie_in_one_is_decided_by_the_other(worse: tuple[float, float]) -> None:
    better, beaten = points((2.0, 0.5), worse)
    assert frontier([better, beaten]) == frontier([beaten, better]) == [better]


def test_equal_points_stay_on_the_frontier_together() -> None:
    equal = points((2.0, 0.5), (2.0, 0.5))
    assert set(frontier(equal)) == set(equal)


def test_one_point_is_the_frontier_and_no_points_have_none() -> None:
    assert frontier(points((1.0, -2.0))) == points((1.0, -2.0))
    assert frontier([]) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_frontier_is_what_no_point_beats(values: list[tuple[int, int]]) -> None:
    given_points = points(*values)
    unbeaten = {
        point.policy
        for point in given_points
        if not any(
            other.speed >= point.speed
            and other.quality >= point.quality
            and (other.speed, other.quality) != (point.speed, point.quality)
            for other in given_points
        )
    }
    best = frontier(given_points)
    assert {point.policy for point in best} == unbeaten
    assert [point.speed for point in best] == sorted(point.speed for point in best)


def test_tasks_weigh_the_same_and_exactness_counts_where_the_full_model_is_exact() -> None:
    rows = [
        row(DASH, "a", "needle", exact=True, nll=2.0),
        row(DASH, "b", "needle", exact=False, nll=2.0),
        row(DASH, "c", "needle", exact=False, nll=2.0, full_exact=False),
        row(DASH, "d", "lookup", exact=True, nll=3.0),
        row(DASH, "e", "summary", exact=True, nll=1.5, full_exact=False),
    ]
    exact, change = compare(rows).panels
    assert "needle" in exact.title
    assert "summary" not in exact.title
    assert exact.full == pytest.approx((2 / 3 + 1) / 2)
    assert exact.points == [Point(DASH, 2.0, pytest.approx((1 / 3 + 1) / 2))]
    assert change.full == 0
    assert change.points == [Point(DASH, 2.0, pytest.approx(-(1 + 2 + 0.5) / 3))]


def test_a_row_given_twice_counts_once() -> None:
    rows = [row(DASH, "a", nll=2.0), row(DASH, "b", nll=1.0)]
    assert compare([*rows, rows[0]]) == compare(rows)


def test_policies_are_compared_on_the_same_samples_and_the_title_says_so() -> None:
    rows = [row(DASH, "a", nll=2.0), row(KEYS, "a", nll=1.5), row(DASH, "b", nll=9.0)]
    comparison = compare(rows)
    assert comparison.panels == compare(rows[:2]).panels
    assert "n = 1 of 2" in comparison.title


def test_the_title_says_how_the_model_was_run_if_not_as_usual() -> None:
    rows = [row(DASH, halted_kv="frozen", query_free=True)]
    assert compare(rows).title == "small, halted K/V frozen, query-free, n = 1"


def test_the_full_model_is_a_line_and_no_point() -> None:
    for panel in compare(ROWS).panels:
        assert "dense" not in {point.policy for point in panel.points}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no rows of a policy that halts"),
        (ROWS[:1], "no rows of a policy that halts"),
        ([row(DASH), row(DASH, model="large")], r"several models or ways \(large; small\)"),
        ([row(DASH), row(DASH, halted_kv="frozen")], "halted K/V frozen"),
        ([row(DASH), row(DASH, query_free=True)], "query-free"),
        ([row(DASH, "a"), row(KEYS, "b")], "no sample has rows of every policy"),
        ([row(DASH, nll=math.nan)], f"NLL of {DASH} on sample a"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows: list[SweepRow], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        pareto(rows, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_stages_are_a_method_of_their_own() -> None:
    assert method(DASH) == "dash"
    assert method(STAGES) == "two stages: key-norm, window-attention"
    assert method("dash:start=1+dash:start=2+dash:start=3") == "three stages: dash"


def test_a_label_is_short() -> None:
    assert short(DASH) == "l11 \u03c1.667"
    assert short(KEYS) == "l25% \u03c1.5 keep first 8"
    assert short(STAGES) == "l7 \u03c1.5\n+ l14 \u03c1.9 chunk 16"
    assert short("dash") == "defaults"


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
    names = [name for name, policy in POLICIES.items() if name != "dense" and policy.scope == "all"]
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


def test_what_all_policies_share_is_said_once_and_on_no_label(draw: Callable[[list[SweepRow]], Figure]) -> None:
    tails = ("start=7,chunk=16,keep_first=8", "chunk=16,start=3,keep_first=8")
    figure = draw(
        [row(f"dash:{tails[0]}"), row(f"dash:{tails[1]}+key-norm:{tails[0]}", reference_speedup=3.0, nll=2.0)]
    )
    assert {text.get_text() for text in figure.axes[1].texts} == {"l7", "l3\n+ l7"}
    assert figure.legends[0].get_title().get_text().endswith("\nall policies: chunk 16 keep first 8")
    (alone,) = draw([row(f"dash:{tails[0]}")]).axes[0].texts
    assert alone.get_text() == "l7 chunk 16 keep first 8"


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


def test_labels_hide_no_dot_and_no_label_and_stay_inside() -> None:
    draw = random.Random(0)
    dots = [(draw.random(), draw.random()) for _ in range(60)]
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    figure.draw_without_rendering()
    place_labels(axes, dict.fromkeys(dots[:20], "a label\nof two lines"), dots, [])
    figure.draw_without_rendering()
    labels = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the dot
    assert len(labels) > 10
    for one, other in combinations(labels, 2):
        assert not one.overlaps(other)
    for label in labels:
        assert all(axes.bbox.contains(x, y) for x, y in label.corners())
        assert not any(label.contains(x, y) for x, y in axes.transData.transform(dots))


def test_labels_keep_off_lines() -> None:
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    line = axes.axhline(0.53)
    axes.set_ylim(0, 1)
    figure.draw_without_rendering()
    place_labels(axes, {(0.5, 0.5): "a label"}, [(0.5, 0.5)], [line])
    figure.draw_without_rendering()
    label = Text.get_window_extent(axes.texts[0])
    _, height = axes.transData.transform((0.5, 0.53))
    assert not label.y0 < height < label.y1


@pytest.mark.parametrize(
    ("dot", "centre", "clear"),
    [
        ((0, 90), (50, 90), True),
        ((0, 18), (50, 18), False),  # the labels overlap
        ((0, 0), (0, 90), True),
        ((35, -60), (35, 90), False),  # its line passes the other label
        ((90, -60), (75, 90), False),  # the lines cross
    ],
)
def test_labels_and_their_lines_do_not_meet(dot: tuple[float, float], centre: tuple[float, float], clear: bool) -> None:
    one, other = spot((100, 0), (50, 0)), spot(dot, centre)
    assert one.clear_of(other) == other.clear_of(one) == clear


@pytest.mark.parametrize(("x", "free"), [(0, True), (40, False), (90, False), (130, True)])
def test_the_line_to_a_dot_passes_over_no_other_dot(x: float, free: bool) -> None:
    dot = Bbox.from_extents(x - 3, -3, x + 3, 3)
    sheet = Sheet(room=Bbox.from_extents(-200, -200, 200, 200), dots=[dot], curves=[])
    assert sheet.free(spot((0, 0), (100, 0))) == free


def spot(dot: tuple[float, float], centre: tuple[float, float]) -> Spot:
    """A label of 40 x 20 pixels."""
    x, y = centre
    return Spot(dot, centre, Bbox.from_extents(x - 20, y - 10, x + 20, y + 10), MplPath([dot, centre]))


def test_a_label_without_room_is_left_out() -> None:
    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    figure.draw_without_rendering()
    place_labels(axes, {(0.5, 0.5): "wider than the whole picture " * 3, (0.2, 0.8): "short"}, [(0.5, 0.5)], [])
    assert [text.get_text() for text in axes.texts] == ["short"]


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "svg"])
def test_another_format_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.svg or \.png"):
        check_plot(Path(name))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"deltahalt\[plot\]"):
        pareto(ROWS, tmp_path / "plot.svg")


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
        ("{", "no row of sweep"),
        ('{"machine": "fast"}', "no row of sweep"),
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


def test_a_long_title_is_broken_so_that_nothing_is_cut_off(tmp_path: Path) -> None:
    with drawn(tmp_path / "long.png", "a word " * 30, (5, 3)) as figure:
        figure.draw_without_rendering()
        assert figure.bbox.x1 > figure._suptitle.get_window_extent().x1  # type: ignore[attr-defined]
