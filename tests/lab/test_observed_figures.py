"""Figures 1 to 3: what is drawn of observed rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from deltahalt import InputError
from deltahalt.lab.evaluation.observe import Observation, delta_edges
from deltahalt.lab.figures.delta_attention import correlations, delta_attention
from deltahalt.lab.figures.delta_distribution import delta_distribution
from deltahalt.lab.figures.observations import quantile
from deltahalt.lab.figures.sparsity import sparsity
from deltahalt.lab.rows.base import append_rows, read_rows

LAYERS, BINS = 8, len(delta_edges()) - 1
DRAWN = [delta_distribution, delta_attention, sparsity]


def counted(*values: float) -> list[int]:
    """A histogram of these relative deltas."""
    return np.histogram(values, delta_edges().numpy())[0].tolist()


ROW = Observation(
    sample="a",
    task="needle",
    model="small",
    prompt=4,
    modality="text",
    tokens=4,
    relative_delta=[counted(0.1, 0.1, 0.1, 0.4)] * LAYERS,
    sparsity=[0.1 * layer for layer in range(LAYERS)],
    delta=[1.0, 2.0, 3.0, 4.0],
    attention=[0.1, 0.2, 0.3, 0.4],
    pearson=1.0,
    spearman=0.5,
)
OTHER = replace(ROW, sample="b", sparsity=[0.5] * LAYERS, pearson=-0.5, spearman=None)
PICTURE = replace(ROW, modality="visual", tokens=2, delta=[5.0, 6.0], attention=[0.0, 0.5], sparsity=[0.9] * LAYERS)


def test_the_density_of_a_layer_is_that_of_all_its_tokens(figures: list[Figure], tmp_path: Path) -> None:
    delta_distribution([ROW, OTHER], tmp_path / "plot.svg")
    left, right = figures[0].axes
    assert left.get_title(loc="left") == "8 text tokens"
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["layer 1", "layer 2", "layer 5", "layer 7"]
    density, edges, _ = left.patches[0].get_data()
    assert (density * np.diff(edges)).sum() == pytest.approx(1)
    place = int(np.searchsorted(edges, 0.4)) - 1
    assert density[place] * (edges[place + 1] - edges[place]) == pytest.approx(0.25)
    (median,) = (line for line in right.lines if line.get_label() == "median")
    assert median.get_ydata() == pytest.approx(np.full(LAYERS, 0.1), rel=0.06)  # a bin's width


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9, 0.99])
def test_a_quantile_is_right_up_to_a_bin(share: float) -> None:
    values = np.random.default_rng(0).lognormal(-2, 0.7, 5_000)
    counts = np.array(counted(*values), dtype=np.float64)
    assert quantile(counts, share) == pytest.approx(float(np.quantile(values, share)), rel=0.02)


def test_every_token_is_in_its_task_s_panel(figures: list[Figure], tmp_path: Path) -> None:
    summary = replace(ROW, task="summary", sample="c", delta=[7.0, 8.0, 9.0, 10.0])
    delta_attention([summary, ROW, OTHER], tmp_path / "plot.svg")
    needle, other = figures[0].axes
    assert needle.get_title(loc="left") == "needle\nPearson +0.25, Spearman +0.50"
    assert other.get_title(loc="left") == "summary\nPearson +1.00, Spearman +0.50"
    assert cells(needle) == near([0.4, 1, 2], [0.8, 2, 2], [1.2, 3, 2], [1.6, 4, 2])
    assert cells(other) == near([0.4, 7, 1], [0.8, 8, 1], [1.2, 9, 1], [1.6, 10, 1])


def near(*wanted: list[float]) -> list[object]:
    return [pytest.approx(cell, rel=0.1) for cell in wanted]


def cells(axes: object) -> list[list[float]]:
    """Attention, delta and number of tokens of each cell that is not empty, in the order of attention."""
    (mesh,) = axes.collections  # type: ignore[attr-defined]
    corners, counts = mesh.get_coordinates(), mesh.get_array()
    places = sorted(zip(*np.nonzero(counts.filled(0)), strict=True), key=lambda place: place[1])
    return [[*map(float, corners[place]), float(counts[place])] for place in places]


def test_a_modality_has_its_own_panel_line_and_row(figures: list[Figure], tmp_path: Path) -> None:
    for draw in DRAWN:
        draw([ROW, OTHER, PICTURE], tmp_path / "plot.svg")
    distribution, attention, sparse = figures
    assert [axes.get_title(loc="left") for axes in distribution.axes] == ["8 text tokens", "", "4 visual tokens", ""]
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in attention.axes]
    assert titles == ["needle", "needle, visual tokens"]
    labelled = [line for line in sparse.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in labelled] == [
        "text tokens, mean of 2 prompts",
        "visual tokens, mean of 1 prompt",
    ]
    assert list(labelled[0].get_ydata()) == pytest.approx([(0.5 + 0.1 * layer) / 2 for layer in range(LAYERS)])
    assert len({line.get_color() for line in labelled}) == 2
    assert len(sparse.axes[0].lines) == 5


def test_prompts_without_a_correlation_say_so() -> None:
    assert correlations([ROW, OTHER]) == "Pearson +0.25, Spearman +0.50"
    assert "nothing varies" in correlations([replace(ROW, pearson=None, spearman=None)])


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize(
    ("rows", "complaint"), [([], "no rows"), ([ROW, replace(ROW, model="large")], r"several models \(large, small\)")]
)
def test_rows_that_cannot_be_drawn_are_refused(
    rows: list[Observation], complaint: str, draw: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=complaint):
        draw(rows, tmp_path / "plot.svg")
    with pytest.raises(InputError, match=r"ends in \.svg or \.png"):
        draw([ROW], tmp_path / "plot.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["delta-distribution", "delta-attention", "sparsity"])
def test_plot_draws_the_same_file_from_the_same_rows(name: str, deltahalt: Callable[..., int], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    append_rows(rows, [ROW, OTHER])
    assert read_rows(rows, Observation) == [ROW, OTHER]
    for out in ("one.svg", "two.svg", "one.png"):
        assert deltahalt("plot", rows, "--figure", name, "--out", tmp_path / out) == 0
        append_rows(rows, [ROW])  # a row given twice counts once
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert ">small, 2 prompts</text>" in (tmp_path / "one.svg").read_text()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("figure", "complaint"), [("pie", "there is no figure 'pie'"), ("pareto", "not a row of sweep")]
)
def test_plot_refuses_an_unknown_figure_and_another_figure_s_rows(
    figure: str,
    complaint: str,
    deltahalt: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tmp_path / "rows.jsonl"
    append_rows(rows, [ROW])
    assert deltahalt("plot", rows, "--figure", figure, "--out", tmp_path / "plot.svg") == 2
    assert complaint in capsys.readouterr().err
