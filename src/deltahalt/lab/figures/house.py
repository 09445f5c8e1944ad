"""What all figures share: file formats, style, colours, and the look of a method."""

import io
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltahalt.errors import InputError
from deltahalt.files import head, require_writable, write_whole
from deltahalt.lab.figures.names import method
from deltahalt.methods.registry import known_methods
from deltahalt.vision.policies import known_vision_policies

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Nothing of the machine, the day or the library goes into a file, so that a redrawn figure is the same file.
MAKER = "deltahalt plot"
FORMATS: dict[str, dict[str, str | None]] = {".svg": {"Date": None, "Creator": MAKER}, ".png": {"Software": MAKER}}
MARKS = f"<dc:title>{MAKER}</dc:title>".encode(), f"tEXtSoftware\0{MAKER}".encode()  # where these formats have it
DPI = 200
LETTERS = 11  # of a title, that fit into an inch
STYLE = {
    "svg.hashsalt": "deltahalt",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.93",
}
# Ten colours told apart with any colour vision (Petroff 2021, arXiv 2107.02270), black, pink, and a marker with each.
PETROFF = ["#3f90da", "#a96b59", "#bd1f01", "#ffa90e", "#94a4a2", "#717581", "#b9ac70", "#832db6", "#e76300", "#92dadd"]
COLOURS = [*PETROFF, "#000000", "#f781bf"]
MARKERS = "osD^vPX<>ph*d"
# A method has the colour and the marker of its place here. Those that halt text come first: bars have no markers.
DRAWN = (
    *("dash", "dash-layer", "window-attention", "max-sim", "last-token-attention", "key-norm", "single-input-kv"),
    *("forecast", "random", "uniform", "dense", "fastv", "dart", "v2drop", "sparsevlm", "llmlingua2", "gemfilter"),
    *("snapkv", "d3", "vision-dash", "dart-vit", "tome", "tofu", "visionzip", "prumerge-plus", "random-groups"),
    "uniform-groups",
)  # in the order of their looks, which stay when others are added
ORDER = list(dict.fromkeys([*DRAWN, *known_methods(), *known_vision_policies()]))
FULL: dict[str, Any] = {"color": "0.25", "linewidth": 1, "linestyle": "--"}  # the full model's line


@contextmanager
def drawn(out: Path, title: str, size: tuple[float, float]) -> "Iterator[Figure]":
    """A figure to draw on inside the block, `size` in inches, written to `out` at its end: .svg or .png.

    The same drawing gives the same file, whatever the user's style. Raises InputError as `check_plot` does.
    """
    check_plot(out)
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        figure.suptitle(textwrap.fill(title, int(LETTERS * size[0])), fontsize=11)
        yield figure
        kind, file = out.suffix.lower(), io.BytesIO()
        figure.savefig(file, format=kind[1:], dpi=DPI, metadata=FORMATS[kind])
        write_whole(out, file.getvalue())


def check_plot(out: Path) -> None:
    """Raise InputError if `out` has no known suffix or cannot be written, or matplotlib is missing."""
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"a plot cannot be written to {out}: name a file that ends in {' or '.join(FORMATS)}")
    require_writable(out)
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib, which the extra `plot` brings: pip install 'deltahalt[plot]'")


def is_plot(file: Path) -> bool:
    """Whether a file is a figure that `drawn` wrote."""
    return any(mark in head(file) for mark in MARKS)


def looks(policies: Iterable[str]) -> "dict[str, Line2D]":
    """A colour and a marker for each method among `policies`; a method of the project has the same in every figure.

    Stages of several methods come from the other end of colours and markers, as they are met.
    """
    from matplotlib.lines import Line2D

    named = {method(policy) for policy in policies}
    others = sorted(named.difference(ORDER), key=lambda name: (len(name), name))
    places = {name: place for place, name in enumerate(ORDER)} | {name: -1 - place for place, name in enumerate(others)}
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
        if name in named
    }
