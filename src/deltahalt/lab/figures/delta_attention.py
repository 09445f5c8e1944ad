"""Attention that tokens get against how much attention updates them (Fig. 2): a panel for each task."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from deltahalt.lab.evaluation.observe import Observation
from deltahalt.lab.figures.house import check_plot, drawn
from deltahalt.lab.figures.observations import Array, of_one_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = 72  # number of cells of a panel in each direction
COLUMNS = 4


def delta_attention(rows: Iterable[Observation], out: Path) -> None:
    """Draw a histogram of tokens by attention and delta to `out`, an .svg or a .png file.

    Attention is from the last layer, as a multiple of the mean token's. Delta is ||U||, mean over the layers. The
    correlations above each panel are means over its prompts. Raises InputError as `check_plot` and `of_one_model` do.
    """
    check_plot(out)
    title, observed = of_one_model(rows)
    panels: dict[str, list[Observation]] = {}
    for row in sorted(observed, key=lambda row: (row.task, row.modality)):
        panels.setdefault(row.task if row.modality == "text" else f"{row.task}, {row.modality} tokens", []).append(row)
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    with drawn(out, title, (max(2.7 * columns, 4), 2.5 * lines + 0.7)) as figure:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        edges = _edges(observed)
        for axes, (name, own) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(f"{name}\n{correlations(own)}")
            _draw(axes, own, edges)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        figure.supxlabel("attention from the last layer, as a multiple of the mean token's", fontsize=9)
        figure.supylabel("||U||, mean over the layers", fontsize=9)


def correlations(rows: Sequence[Observation]) -> str:
    """Return the mean correlations of several prompts as text."""
    pearson = [row.pearson for row in rows if row.pearson is not None]
    spearman = [row.spearman for row in rows if row.spearman is not None]
    if not pearson or not spearman:
        return "no correlation: nothing varies"
    return f"Pearson {fmean(pearson):+.2f}, Spearman {fmean(spearman):+.2f}"


def _draw(axes: "Axes", rows: Sequence[Observation], edges: Sequence[Array]) -> None:
    """Draw the histogram as an image, darker for more tokens: a dot for each token would make a large file."""
    from matplotlib.ticker import NullLocator

    attention, delta = (np.concatenate([part(row) for row in rows]) for part in (_attention, _delta))
    counts, *_ = np.histogram2d(attention, delta, bins=edges)
    shown = np.ma.masked_equal(counts.T, 0)
    axes.pcolormesh(*edges, shown, cmap="Blues", norm="log", vmin=0.3, rasterized=True)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid()


def _edges(rows: Sequence[Observation]) -> tuple[Array, Array]:
    """Return the edges of the cells: equal steps of the logarithm for attention, and equal steps for delta."""
    attention, delta = (np.concatenate([part(row) for row in rows]) for part in (_attention, _delta))
    attention = attention[attention > 0]
    return (
        np.geomspace(attention.min() / 1.1, attention.max() * 1.1, CELLS + 1),
        np.linspace(delta.min() * 0.95, delta.max() * 1.05, CELLS + 1),
    )


def _attention(row: Observation) -> Array:
    return np.array(row.attention) * row.prompt


def _delta(row: Observation) -> Array:
    return np.array(row.delta)
