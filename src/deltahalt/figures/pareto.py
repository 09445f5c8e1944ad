"""The picture of accuracy against speed: a dot a policy, and the frontier with labels."""

import textwrap
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deltahalt.errors import InputError
from deltahalt.evaluation.sweep import SweepRow
from deltahalt.figures.comparison import Panel, compare, frontier
from deltahalt.figures.labels import place_labels
from deltahalt.policies import POLICIES, Dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Nothing of the machine, the day or the library goes into a file, so that a redrawn figure is the same file.
FORMATS: dict[str, dict[str, None]] = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
DPI = 200
STYLE = {
    "svg.hashsalt": "deltahalt",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Ten colours told apart with any colour vision (Petroff 2021, arXiv 2107.02270), and a marker with each.
COLOURS = ["#3f90da", "#a96b59", "#bd1f01", "#ffa90e", "#94a4a2", "#717581", "#b9ac70", "#832db6", "#e76300", "#92dadd"]
MARKERS = "osD^vPX<>ph*"
COUNTS = {2: "two", 3: "three", 4: "four"}
RHO = "\N{GREEK SMALL LETTER RHO}"
NOTE = f"pale: off the frontier; labels, where there is room: l start layer, {RHO} share of the prompt halted there"


def pareto(rows: Iterable[SweepRow], out: Path) -> None:
    """Draw accuracy against speed to `out`, an .svg or a .png file.

    Left: share of exact answers, a mean over the tasks that the full model answers exactly at all. Right: change of the
    negative log-likelihood, nats a token, a mean over all tasks. Both against the true-FLOPs ratio of the schedule on
    Qwen2.5-7B's shape at 16K. The same rows give the same file. Raises InputError as `check_plot` and `compare` do.
    """
    check_plot(out)
    comparison = compare(rows)
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(10.5, 5.4), dpi=DPI, layout="constrained")
        figure.suptitle(comparison.title, fontsize=11)
        looks = _looks(point.policy for panel in comparison.panels for point in panel.points)
        columns = list(figure.subplots(1, len(comparison.panels), sharex=True))
        lines = [_draw(axes, panel, looks) for axes, panel in zip(columns, comparison.panels, strict=True)]
        figure.legend(
            handles=[*looks.values(), *lines[0]],
            title=NOTE,
            title_fontsize="medium",
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
        figure.draw_without_rendering()  # the layout settles, and labels are measured in it
        figure.set_layout_engine("none")
        for axes, panel, drawn in zip(columns, comparison.panels, lines, strict=True):
            place_labels(axes, _labels(panel), [panel.spot(point) for point in panel.points], drawn)
        out.parent.mkdir(parents=True, exist_ok=True)
        kind = out.suffix.lower()
        figure.savefig(out, format=kind[1:], dpi=DPI, metadata=FORMATS[kind])


def check_plot(out: Path) -> None:
    """Raise InputError if `out` has no known suffix, or matplotlib is missing."""
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"a plot cannot be written to {out}: name a file that ends in {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib, which the extra `plot` brings: pip install 'deltahalt[plot]'")


def method(policy: str) -> str:
    """What a policy's text names: a method, or several that share the work in stages."""
    names = [stage.partition(":")[0].strip() for stage in policy.split("+")]
    if len(names) == 1:
        return names[0]
    return f"{COUNTS.get(len(names), len(names))} stages: {', '.join(dict.fromkeys(names))}"


def short(policy: str) -> str:
    """A policy's options in few letters, a line a stage: `l14 rho.667 chunk 64`."""
    stages = [stage.partition(":")[2].split(",") for stage in policy.split("+")]
    return "\n+ ".join(
        " ".join(map(_short, sorted(filter(None, options), key=_place))) or "defaults" for options in stages
    )


def _place(option: str) -> int:
    """The start layer comes first, then the ratio, then the rest as given."""
    return {"start": 0, "pruning_ratio": 1}.get(_split(option)[0], 2)


def _short(option: str) -> str:
    key, value = _split(option)
    if key == "start":
        return f"l{value}" if value.isdecimal() else f"l{100 * float(value):g}%"
    if key == "pruning_ratio":
        return RHO + (value.lstrip("0") or "0")
    return f"{key.replace('_', ' ')} {value}"


def _split(option: str) -> tuple[str, str]:
    key, _, value = option.partition("=")
    return key.strip().replace("-", "_"), value.strip()


def _labels(panel: Panel) -> dict[tuple[float, float], str]:
    """The frontier's labels by where they belong; where policies meet, the shortest is named and the rest counted."""
    meeting: dict[tuple[float, float], list[str]] = {}
    for point in frontier(panel.points):
        meeting.setdefault(panel.spot(point), []).append(short(point.policy))
    return {
        spot: min(texts, key=len) + (f" or {len(texts) - 1} more" if len(texts) > 1 else "")
        for spot, texts in meeting.items()
    }


def _looks(policies: Iterable[str]) -> "dict[str, Line2D]":
    """A colour and a marker for each method drawn; a method of the package has the same in every figure."""
    from matplotlib.lines import Line2D

    drawn = {method(policy) for policy in policies}
    known = [name for name in POLICIES if name != Dense.name]
    others = sorted(drawn.difference(known), key=lambda name: (len(name), name))
    places = {name: place for place, name in enumerate([*known, *others])}
    return {
        name: Line2D(
            [],
            [],
            linestyle="none",
            marker=MARKERS[place % len(MARKERS)],
            color=COLOURS[place % len(COLOURS)],
            markersize=6,
            label=name,
        )
        for name, place in places.items()
        if name in drawn
    }


def _draw(axes: "Axes", panel: Panel, looks: "dict[str, Line2D]") -> "list[Line2D]":
    """Points, frontier and the full model; returns the lines, which labels keep clear of."""
    axes.set_title(textwrap.fill(panel.title, 72), loc="left")
    axes.set_xlabel("speedup of prefill (ratio of true FLOPs, Qwen2.5-7B's shape at 16K)")
    axes.set_ylabel(panel.axis)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.margins(0.08, 0.12)  # room for labels at the ends
    if panel.sign < 0:
        axes.invert_yaxis()
    best = frontier(panel.points)
    for point in panel.points:
        look, leads = looks[method(point.policy)], point in best
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
    steps = axes.plot(xs, ys, drawstyle="steps-pre", color="0.25", linewidth=1.2, label="frontier")
    return [*steps, axes.axhline(panel.full, color="0.25", linewidth=1, linestyle="--", label="full model")]
