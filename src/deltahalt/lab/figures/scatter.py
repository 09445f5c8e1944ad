"""Scatter plots of quality against speed: a dot for each policy, and the Pareto frontier with labels."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltahalt.lab.figures.comparison import Panel, frontier
from deltahalt.lab.figures.house import FULL, drawn, looks
from deltahalt.lab.figures.labels import place_labels
from deltahalt.lab.figures.names import RHO, method, shared_beyond, short, without

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LETTERS = 13.5  # number of letters of a panel's title or the legend that fit into an inch
NOTE = f"pale: off the frontier; labels, where there is room: l start layer, {RHO} share of the prompt halted there"


def scatter(title: str, panels: Sequence[Panel], out: Path) -> None:
    """Draw the panels side by side to `out`. Raises InputError as `check_plot` does."""
    width = 5.25 * max(len(panels), 1.4)
    with drawn(out, title, (width, 5.4)) as figure:
        policies = list(dict.fromkeys(point.policy for panel in panels for point in panel.points))
        known, shared = looks(policies), shared_beyond(policies)
        columns = list(figure.subplots(1, len(panels), sharex=True, squeeze=False)[0])
        letters = int(LETTERS * width / len(panels))
        lines = [_draw(axes, panel, known, letters) for axes, panel in zip(columns, panels, strict=True)]
        figure.legend(
            handles=[*known.values(), *columns[0].get_legend_handles_labels()[0]],
            title=f"{NOTE}\n{_said_once(shared, int(LETTERS * width))}" if shared else NOTE,
            title_fontsize="medium",
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
        figure.draw_without_rendering()  # fixes the layout, in which labels are measured
        figure.set_layout_engine("none")
        for axes, panel, lines_here in zip(columns, panels, lines, strict=True):
            place_labels(axes, _labels(panel, shared), [panel.spot(point) for point in panel.points], lines_here)


def _said_once(shared: Collection[str], letters: int) -> str:
    return textwrap.fill(f"all with options beyond l and {RHO}: {short('all:' + ','.join(shared))}", letters)


def _labels(panel: Panel, shared: Collection[str]) -> dict[tuple[float, float], str]:
    """Return the frontier's labels by position. Policies at the same position get the shortest label and a count.

    shared: options that the legend names and labels leave out.
    """
    by_spot: dict[tuple[float, float], list[str]] = {}
    for point in frontier(panel.points):
        by_spot.setdefault(panel.spot(point), []).append(short(without(point.policy, shared)))
    return {
        spot: min(texts, key=len) + (f" or {len(texts) - 1} more" if len(texts) > 1 else "")
        for spot, texts in by_spot.items()
    }


def _draw(axes: "Axes", panel: Panel, known: "dict[str, Line2D]", letters: int) -> "list[Line2D]":
    """Draw points, frontier and the full model; return the lines, which labels must not cover.

    letters: number of the title's letters that fit into a line.
    """
    axes.set_title(textwrap.fill(panel.title, letters))
    axes.set_xlabel(panel.across)
    axes.set_ylabel(panel.axis)
    axes.grid()
    axes.margins(0.08, 0.12)  # leaves room for labels at the edges
    if panel.sign < 0:
        axes.invert_yaxis()
    best = frontier(panel.points)
    for point in panel.points:
        look, leads = known[method(point.policy)], point in best
        axes.plot(
            *panel.spot(point),
            linestyle="none",
            marker=look.get_marker(),
            color=look.get_color(),
            markersize=7 if leads else 5,
            alpha=1 if leads else 0.7,
            markeredgecolor="black" if leads else "white",
            markeredgewidth=0.8 if leads else 0.4,
            zorder=4 if leads else 3,
        )
    spots = [panel.spot(point) for point in best]
    xs, ys = zip(*spots, strict=True) if spots else ((), ())
    lines = axes.plot(xs, ys, drawstyle="steps-pre", color="0.25", linewidth=1.2, label="frontier")
    lines.append(axes.axhline(panel.full, **FULL, label="full model"))
    if panel.full_speed is not None:
        lines.append(axes.axvline(panel.speed_sign * panel.full_speed, **FULL))
    return lines
