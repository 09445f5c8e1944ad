"""Labels beside the dots of a plot, placed so that they cover nothing."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

# Positions that are tried for a label, nearest first. No dots are above and to the right of a frontier: 45 degrees come
# first.
DISTANCES = (5, 8, 12, 16, 20, 25, 30, 36, 42, 50, 60, 70, 80, 95, 110, 130)  # points between a dot and its label
ANGLES = (45, 30, 60, 15, 75, 0, 90, 105, 120, 135, 150, 165, 180, -15, -30, -45, -60, -75, -90, -120, -150)  # degrees
FONT, DOT, PAD = 7.5, 4.5, 2  # in points: font size, radius of a dot, space around a label
ORDERS = 24  # number of orders of placing labels that are tried, since the result depends on the order

Pair = tuple[float, float]


@dataclass(frozen=True)
class Spot:
    """A position for a label, in pixels. leader: the line from its dot to its centre."""

    dot: Pair
    centre: Pair
    box: "Bbox"
    leader: "Path"

    def clear_of(self, other: "Spot") -> bool:
        """Whether this label and another do not overlap each other or their lines, and their lines do not cross."""
        return not (
            self.box.overlaps(other.box)
            or self.leader.intersects_bbox(other.box, filled=False)
            or other.leader.intersects_bbox(self.box, filled=False)
            or self.leader.intersects_path(other.leader, filled=False)
        )


@dataclass(frozen=True)
class Sheet:
    """The area that labels must stay in, and the dots and curves that they must not cover, in pixels."""

    room: "Bbox"
    dots: "list[Bbox]"
    curves: "list[Path]"

    def free(self, spot: Spot) -> bool:
        """Whether a label covers nothing, and its line crosses no dot but its own."""
        return (
            all(self.room.contains(x, y) for x, y in spot.box.corners())
            and not spot.box.count_overlaps(self.dots)
            and not any(curve.intersects_bbox(spot.box, filled=False) for curve in self.curves)
            and not any(
                spot.leader.intersects_bbox(dot, filled=False) for dot in self.dots if not dot.contains(*spot.dot)
            )
        )


def place_labels(axes: "Axes", labels: Mapping[Pair, str], dots: Sequence[Pair], lines: "Sequence[Line2D]") -> None:
    """Write each label beside its dot, clear of dots, lines and other labels, with a thin line to the dot.

    Dots are in the units of the axes, whose layout and limits must be final. A label without a free position is left
    out.
    """
    unit = axes.figure.dpi / 72  # pixels in a point
    sheet = Sheet(
        room=axes.bbox,
        dots=[_box((x, y), (DOT * unit, DOT * unit)) for x, y in map(axes.transData.transform, dots)],
        curves=[line.get_transform().transform_path(line.get_path()) for line in lines],
    )
    spots = {dot: list(filter(sheet.free, _spots(axes, dot, text, unit))) for dot, text in labels.items()}
    for dot, spot in _arrange(spots).items():
        axes.annotate(
            labels[dot],
            dot,
            xytext=((spot.centre[0] - spot.dot[0]) / unit, (spot.centre[1] - spot.dot[1]) / unit),
            textcoords="offset points",
            fontsize=FONT,
            ha="center",
            va="center",
            multialignment="left",
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
            zorder=2.5,  # under the dots
        )


def _arrange(spots: Mapping[Pair, Sequence[Spot]]) -> dict[Pair, Spot]:
    """Choose positions that do not conflict, for as many dots as possible and with short lines."""
    draw = random.Random(0)
    tried = [_in_order(spots, draw.sample(sorted(spots), len(spots))) for _ in range(ORDERS)]
    return min(tried, key=lambda taken: (-len(taken), sum(math.dist(s.dot, s.centre) for s in taken.values())))


def _in_order(spots: Mapping[Pair, Sequence[Spot]], order: Sequence[Pair]) -> dict[Pair, Spot]:
    """Choose for each dot, in `order`, the first position that does not conflict with those chosen before."""
    taken: dict[Pair, Spot] = {}
    for dot in order:
        found = next((spot for spot in spots[dot] if all(spot.clear_of(other) for other in taken.values())), None)
        if found is not None:
            taken[dot] = found
    return taken


def _spots(axes: "Axes", dot: Pair, text: str, unit: float) -> Iterator[Spot]:
    """Yield the positions to try for a dot's label, the best first."""
    from matplotlib.path import Path

    ruler = axes.text(*dot, text, fontsize=FONT)
    extent = ruler.get_window_extent()
    ruler.remove()
    width, height = extent.width / 2 + PAD * unit, extent.height / 2 + PAD * unit
    x, y = axes.transData.transform(dot)
    for distance in DISTANCES:
        for angle in map(math.radians, ANGLES):
            right, up = math.cos(angle) * (width + distance * unit), math.sin(angle) * (height + distance * unit)
            centre = (x + right, y + up)
            yield Spot((x, y), centre, _box(centre, (width, height)), Path([(x, y), centre]))


def _box(centre: Pair, half: Pair) -> "Bbox":
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1])
