"""Distribution of relative attention deltas at four layers and over the depth (Fig. 1)."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltahalt.lab.evaluation.observe import Observation, delta_edges
from deltahalt.lab.figures.house import COLOURS, check_plot, drawn
from deltahalt.lab.figures.observations import MODALITIES, Array, by_modality, of_one_model, quantile, relative_deltas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEPTHS = (5 / 28, 10 / 28, 20 / 28, 25 / 28)  # the paper's layers in its model of 28 layers
DELTA = "relative attention delta, ||U|| / ||H||"


def delta_distribution(rows: Iterable[Observation], out: Path) -> None:
    """Draw the distributions to `out`, an .svg or a .png file, with a row of panels for each modality.

    Left: density of ||U|| / ||H|| over all tokens, at four depths, up to its 99 % quantile. Right: its median
    and its middle 50 and 90 % of tokens in every layer. Raises InputError as `check_plot` and `of_one_model` do.
    """
    check_plot(out)
    title, observed = of_one_model(rows)
    modalities = by_modality(observed)
    with drawn(out, title, (10.5, 3.4 * len(modalities) + 0.4)) as figure:
        grid = figure.subplots(len(modalities), 2, squeeze=False)
        for (left, right), (modality, own) in zip(grid, modalities.items(), strict=True):
            counts = relative_deltas(own)
            left.set_title(f"{int(counts[0].sum()):,} {modality} tokens")
            _draw_density(left, counts)
            _draw_depth(right, counts, MODALITIES[modality])


def _draw_density(axes: "Axes", counts: Array) -> None:
    edges, widths = delta_edges().numpy(), np.diff(delta_edges().numpy())
    layers = sorted({math.floor(depth * len(counts)) for depth in DEPTHS})
    for colour, layer in zip((COLOURS[0], COLOURS[3], COLOURS[2], COLOURS[7]), layers, strict=False):
        density = counts[layer] / counts[layer].sum() / widths
        axes.stairs(density, edges, color=colour, linewidth=1.4, label=f"layer {layer}")
    axes.set_xlim(0, max(quantile(counts[layer], 0.99) for layer in layers))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(DELTA)
    axes.set_ylabel("density of tokens")
    axes.legend(frameon=False)
    axes.grid()


def _draw_depth(axes: "Axes", counts: Array, colour: str) -> None:
    from matplotlib.ticker import LogLocator

    depth = range(len(counts))
    for share, alpha in ((0.05, 0.2), (0.25, 0.35)):
        low, high = ([quantile(layer, s) for layer in counts] for s in (share, 1 - share))
        label = f"middle {100 - 200 * share:.0f} % of tokens"
        axes.fill_between(depth, low, high, color=colour, alpha=alpha, linewidth=0, label=label)
    axes.plot(depth, [quantile(layer, 0.5) for layer in counts], color="0.25", linewidth=1.4, label="median")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlim(0, len(counts) - 1)
    axes.set_xlabel("layer")
    axes.set_ylabel(DELTA)
    axes.legend(frameon=False)
    axes.grid()
