"""The common style of all figures: file formats, fonts, and the colour and marker of each method."""

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

# Files name neither machine nor date nor library version, so that a redrawn figure is the same file.
MAKER = "deltahalt plot"
FORMATS: dict[str, dict[str, str | None]] = {".svg": {"Date": None, "Creator": MAKER}, ".png": {"Software": MAKER}}
MARKS = f"<dc:title>{MAKER}</dc:title>".encode(), f"tEXtSoftware\0{MAKER}".encode()  # `MAKER` as these formats store it
DPI = 200
LETTERS = 11  # number of a title's letters that fit into an inch
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
# Ten colours that differ for any colour vision (Petroff 2021, arXiv 2107.02270), black and pink; each has a marker.
PETROFF = ["#3f90da", "#a96b59", "#bd1f01", "#ffa90e", "#94a4a2", "#717581", "#b9ac70", "#832db6", "#e76300", "#92dadd"]
COLOURS = [*PETROFF, "#000000", "#f781bf"]
MARKERS = "osD^vPX<>ph*d"
# A method's place here decides its colour and marker. Methods that halt text come first, since bars have no markers.
DRAWN = (
    *("dash", "dash-layer", "window-attention", "max-sim", "last-token-attention", "key-norm", "single-input-kv"),
    *("forecast", "random", "uniform", "dense", "fastv", "dart", "v2drop", "sparsevlm", "llmlingua2", "gemfilter"),
    *("snapkv", "d3", "vision-dash", "dart-vit", "tome", "tofu", "visionzip", "prumerge-plus", "random-groups"),
    "uniform-groups",
)  # add new methods at the end, so that the others keep their colours and markers
ORDER = list(dict.fromkeys([*DRAWN, *known_methods(), *known_vision_policies()]))
FULL: dict[str, Any] = {"color": "0.25", "linewidth": 1, "linestyle": "--"}  # the full model's line


@contextmanager
def drawn(out: Path, title: str, size: tuple[float, float]) -> "Iterator[Figure]":
    """Yield a figure of `size` inches to draw on, and write it to `out`, an .svg or .png file, when the block ends.

    The same drawing gives the same file, whatever matplotlib style the user has set. Raises InputError as `check_plot`
    does.
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
        raise InputError("plots need matplotlib, which is not installed: pip install 'deltahalt[plot]'")


def is_plot(file: Path) -> bool:
    """Whether a file is a figure that `drawn` wrote."""
    return any(mark in head(file) for mark in MARKS)


def looks(policies: Iterable[str]) -> "dict[str, Line2D]":
    """Return a colour and a marker for each method in `policies`. A method of the package has the same in every figure.

    Combinations of several methods get colours and markers from the end of the lists, shortest name first.
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
