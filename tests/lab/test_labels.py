"""Labels beside dots: none hides a dot, a line or another label."""

import random
from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.path import Path as MplPath
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from deltahalt.lab.figures.labels import Sheet, Spot, place_labels


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
