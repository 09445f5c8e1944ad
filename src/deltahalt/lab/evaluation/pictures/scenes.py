"""Pictures to ask about: a seed gives a scene, and a scene gives pixels and labels.

A scene has coloured shapes, numbers, words and, in some scenes, a bar chart, over a textured and cluttered background.
Training scenes have none of the seeds, textures and written texts of held-out scenes, and none of the pairs of colour
and shape in `HELD_OUT_PAIRS`.
"""

import random
import zlib
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (225, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (250, 235, 60),
    "green": (50, 190, 60),
    "cyan": (70, 225, 230),
    "blue": (60, 90, 250),
    "purple": (170, 60, 220),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
HELD_OUT_PAIRS = {(colour, SHAPES[(3 * row + 1) % 8]) for row, colour in enumerate(COLOURS)}
DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I and O, which look like digits
TOKEN = 16  # a visual token is 16 x 16 pixels
CELL = (42, 64)  # height and width in pixels of the cell that each item has for itself
FONT_SIZES = (16, 18, 20, 22, 24, 26, 28)
SHAPE_SIZES = tuple(range(18, 36, 2))
UNIT = 7  # a bar of value 1 is 7 pixels high
BAR = 14
NAMES = [*DIGITS, *LETTERS, *SHAPES]  # a visual token's label is 0 for nothing, or 1 + the index here of what it shows
SPECKS = 640  # side of a texture in pixels
HELD_OUT = 2**41  # seeds from this one on are never trained on


@dataclass(frozen=True)
class Item:
    """A shape, a number or a word, in a cell of the grid."""

    kind: str
    text: str  # the written text, or the shape's name
    colour: str
    row: int
    column: int
    x: int
    y: int
    size: int
    variant: int  # rotation of a shape, weight of a font

    def centre(self) -> tuple[float, float]:
        """Return the row and column of the item's centre, in pixels."""
        height, width = mask_of(self.kind, self.text, self.size, self.variant).shape
        return self.y + height / 2, self.x + width / 2

    def __str__(self) -> str:
        return f"{self.colour} {self.text}" if self.kind == "shape" else self.text


@dataclass(frozen=True)
class Bar:
    """One bar of a chart. value: 1 to 9."""

    label: str
    colour: str
    value: int


@dataclass(frozen=True)
class Scene:
    """A picture's content, from which its pixels, labels and questions follow."""

    height: int
    width: int
    items: tuple[Item, ...]
    bars: tuple[Bar, ...] = ()
    chart_at: tuple[int, int] = (0, 0)  # row and column of the chart's upper left pixel
    texture: int = 0
    texture_at: tuple[int, int] = (0, 0)
    held_out: bool = False
    tints: tuple[tuple[int, int, int], ...] = field(
        default=(), repr=False
    )  # offset to the RGB colour of each item and bar

    def of(self, *kinds: str) -> list[Item]:
        """Return the items of these kinds, in raster order."""
        return [item for item in self.items if item.kind in kinds]


def make_scene(
    seed: int, height: int, width: int, *, clutter: float = 1.0, small: float = 1.0, held_out: bool = False
) -> Scene:
    """Return the scene of a seed.

    height, width: multiples of 32 pixels. clutter: probability of a cluttered texture. small: probability of small
    glyphs.
    """
    draw = random.Random(2 * seed + held_out)
    rows, columns = height // CELL[0], width // CELL[1]
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    bars: tuple[Bar, ...] = ()
    corner = (0, 0)
    if rows * columns >= 12 and draw.random() < 0.35:
        corner = draw.randrange(rows - 1), draw.randrange(columns - 1)
        bars = _draw_bars(draw)
        taken = {(corner[0] + down, corner[1] + right) for down in (0, 1) for right in (0, 1)}
        cells = [cell for cell in cells if cell not in taken]
    count = min(draw.randint(max(2, len(cells) // 3), max(3, 2 * len(cells) // 3)), 14)
    chosen = sorted(draw.sample(cells, min(count, len(cells))))
    items = _draw_items(draw, chosen, small, held_out)
    return Scene(
        height,
        width,
        items,
        bars,
        (corner[0] * CELL[0] + draw.randint(0, 3), corner[1] * CELL[1] + draw.randint(0, 15)),
        draw.randrange(TEXTURES) + (TEXTURES if draw.random() < clutter else 0),
        (draw.randrange(SPECKS - height), draw.randrange(SPECKS - width)),
        held_out,
        tuple((draw.randint(-18, 10), draw.randint(-18, 10), draw.randint(-18, 10)) for _ in (*items, *bars)),
    )


def _draw_bars(draw: random.Random) -> tuple[Bar, ...]:
    count = draw.randint(3, 5)
    labels = sorted(draw.sample("ABCDEFGH", count))
    colours, values = draw.sample(list(COLOURS), count), draw.sample(range(1, 10), count)
    return tuple(map(Bar, labels, colours, values))


def _draw_items(draw: random.Random, cells: list[tuple[int, int]], small: float, held_out: bool) -> tuple[Item, ...]:
    """Draw an item for each cell. Some scenes repeat one pair, colour or shape, so that there is something to count."""
    written = draw.randint(1, max(1, min(5, len(cells) // 2)))
    kinds = ["number" if draw.random() < 0.5 else "word" for _ in range(written)]
    kinds += ["shape"] * (len(cells) - written)
    draw.shuffle(kinds)
    ink = {kind: draw.sample(list(COLOURS), len(COLOURS)) for kind in ("number", "word")}
    theme = draw.choice(PAIRS)
    repeats = draw.choice((0, 0, 0.3, 0.6, 0.9))
    items = []
    for kind, (row, column) in zip(kinds, cells, strict=True):
        if kind == "shape":
            pair = _draw_pair(draw, theme, repeats, held_out)
            size, variant = draw.choice(SHAPE_SIZES), draw.randrange(4)
        else:
            pair = (ink[kind].pop(), draw_text(draw, kind, held_out))
            variant = draw.randrange(2)
            fitting = [size for size in FONT_SIZES if mask_of(kind, pair[1], size, variant).shape[1] <= CELL[1] - 2]
            size = draw.choice(fitting) if draw.random() < small else fitting[-1]
        height, width = mask_of(kind, pair[1], size, variant).shape
        y = row * CELL[0] + draw.randint(1, max(1, CELL[0] - height - 1))
        x = column * CELL[1] + draw.randint(0, max(0, CELL[1] - width - 1))
        items.append(Item(kind, pair[1], pair[0], row, column, x, y, size, variant))
    return tuple(items)


def _draw_pair(draw: random.Random, theme: tuple[str, str], repeats: float, held_out: bool) -> tuple[str, str]:
    while True:
        pair = draw.choice(PAIRS)
        if draw.random() < repeats:
            pair = draw.choice((theme, (theme[0], pair[1]), (pair[0], theme[1])))
        if held_out or pair not in HELD_OUT_PAIRS:
            return pair


def draw_text(draw: random.Random, kind: str, held_out: bool) -> str:
    """Draw a number of 2 or 3 digits or a word of 3 or 4 letters. One string in five is only for held-out scenes."""
    while True:
        alphabet, lengths = (DIGITS, (2, 3)) if kind == "number" else (LETTERS, (3, 3, 4))
        text = "".join(draw.choices(alphabet, k=draw.choice(lengths)))
        fits = mask_of(kind, text, FONT_SIZES[0], 1).shape[1] <= CELL[1] - 2
        if fits and (zlib.crc32(text.encode()) % 5 == 0) == held_out and text[0] != "0":
            return text


def render(scene: Scene) -> np.ndarray:
    """Return the pixels, uint8 [height, width, 3]."""
    top, left = scene.texture_at
    texture = textures(scene.held_out)[scene.texture]
    image = texture[top : top + scene.height, left : left + scene.width].copy()
    for item, tint in zip(scene.items, scene.tints, strict=False):
        _blend(image, mask_of(item.kind, item.text, item.size, item.variant), item.y, item.x, item.colour, tint)
    if scene.bars:
        _render_chart(image, scene)
    return image


def _render_chart(image: np.ndarray, scene: Scene) -> None:
    top, left = scene.chart_at
    foot = top + 9 * UNIT + 1
    for value in (0, 3, 6, 9):
        image[foot - value * UNIT, left : left + _chart_width(scene)] = 120
    for at, (bar, tint) in enumerate(zip(scene.bars, scene.tints[len(scene.items) :], strict=True)):
        x = left + 4 + at * (BAR + 7)
        full = np.full((bar.value * UNIT, BAR), 255, np.uint8)
        _blend(image, full, foot - bar.value * UNIT, x, bar.colour, tint)
        label = mask_of("word", bar.label, 16, 0)
        _blend(image, label, foot + 3, x + (BAR - label.shape[1]) // 2, "white", (0, 0, 0))


def _chart_width(scene: Scene) -> int:
    return 8 + len(scene.bars) * (BAR + 7)


def _blend(image: np.ndarray, mask: np.ndarray, y: int, x: int, colour: str, tint: tuple[int, int, int]) -> None:
    part = image[y : y + mask.shape[0], x : x + mask.shape[1]]
    mask = mask[: part.shape[0], : part.shape[1], None].astype(np.uint16)
    ink = np.clip(np.add(COLOURS[colour], tint), 0, 255).astype(np.uint16)
    part[:] = (part * (255 - mask) + ink * mask) // 255


def label(scene: Scene) -> np.ndarray:
    """Return the labels of visual tokens, uint8 [height / 16, width / 16, 2]: 1 + index of name and colour, or 0."""
    labels = np.zeros((scene.height // TOKEN, scene.width // TOKEN, 2), np.uint8)
    for item in scene.items:
        colour = list(COLOURS).index(item.colour) + 1
        boxes = [(item.text, 0, item.size)] if item.kind == "shape" else spans(item.text, item.size, item.variant)
        height = mask_of(item.kind, item.text, item.size, item.variant).shape[0]
        for name, begin, end in boxes:
            rows = _covered(item.y, item.y + height)
            columns = _covered(item.x + begin, item.x + end)
            labels[rows, columns] = NAMES.index(name) + 1, colour
    for at, bar in enumerate(scene.bars):
        foot, x = scene.chart_at[0] + 9 * UNIT + 1, scene.chart_at[1] + 4 + at * (BAR + 7)
        labels[_covered(foot - bar.value * UNIT, foot), _covered(x, x + BAR), 1] = list(COLOURS).index(bar.colour) + 1
        labels[_covered(foot + 3, foot + 15), _covered(x, x + BAR), 0] = NAMES.index(bar.label) + 1
    return labels


def _covered(begin: int, end: int) -> slice:
    """Return the tokens whose centre is covered, or within 3 pixels of being covered; at least one token."""
    first = max(0, (begin - 3 + TOKEN // 2 - 1) // TOKEN)
    last = max(first + 1, (end + 3 + TOKEN // 2 - 1) // TOKEN)
    return slice(first, last)


@lru_cache(maxsize=100_000)
def mask_of(kind: str, text: str, size: int, variant: int) -> np.ndarray:
    """Return the opacity of an item's pixels, uint8 [height, width]."""
    if kind == "shape":
        return shape_mask(text, size, variant)
    placed = spans(text, size, variant)
    height = max(glyph_mask(glyph, size, variant).shape[0] for glyph in text)
    ink = np.zeros((height, placed[-1][2]), np.uint8)
    for glyph, begin, _ in placed:
        mask = glyph_mask(glyph, size, variant)
        part = ink[: mask.shape[0], begin : begin + mask.shape[1]]
        np.maximum(part, mask[:, : part.shape[1]], out=part)
    return ink


def spans(text: str, size: int, variant: int) -> list[tuple[str, int, int]]:
    """Return each glyph of a text with its begin and end, in pixels from the left."""
    placed, x = [], 0
    for glyph in text:
        width = glyph_mask(glyph, size, variant).shape[1]
        placed.append((glyph, x, x + width))
        x += width + 1
    return placed


@cache
def glyph_mask(glyph: str, size: int, variant: int) -> np.ndarray:
    """Return a glyph in Pillow's default font, cropped in width to its ink and in height to that of capitals."""
    font = ImageFont.load_default(size)
    image = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(image).text((size // 2, size + size // 2), glyph, 255, font, "ls", stroke_width=variant * 0.6)
    pixels = np.asarray(image)
    columns = np.flatnonzero(pixels.any(0))
    return pixels[size + size // 2 - (3 * size) // 4 - 1 : size + size // 2 + 2, columns[0] : columns[-1] + 1]


@cache
def shape_mask(shape: str, size: int, variant: int) -> np.ndarray:
    """Return the opacity of a slightly rotated shape, uint8 [size, size]."""
    scale, turn = 8, (variant - 1.5) * 0.14
    image = Image.new("L", (size * scale, size * scale))
    pen = ImageDraw.Draw(image)
    if shape in {"circle", "ring"}:
        pen.ellipse((0.04 * size * scale, 0.04 * size * scale, 0.96 * size * scale, 0.96 * size * scale), 255)
        if shape == "ring":
            pen.ellipse((0.3 * size * scale, 0.3 * size * scale, 0.7 * size * scale, 0.7 * size * scale), 0)
    else:
        turned = [(x * cos(turn) - y * sin(turn), x * sin(turn) + y * cos(turn)) for x, y in _outline(shape)]
        pen.polygon([((0.5 + 0.47 * x) * size * scale, (0.5 + 0.47 * y) * size * scale) for x, y in turned], 255)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return a shape's corners within the unit circle; y points down."""
    if shape == "star":
        return _ring([(1.0 if step % 2 == 0 else 0.42, step / 10) for step in range(10)])
    if shape == "heart":
        angles = [2 * pi * step / 40 for step in range(40)]
        return [
            (sin(a) ** 3, -(13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a)) / 17 + 0.05) for a in angles
        ]
    if shape == "cross":
        quarter = [(0.3, 0.95), (0.3, 0.3), (0.95, 0.3)]
        return [
            *quarter,
            *((x, -y) for x, y in reversed(quarter)),
            *((-x, -y) for x, y in quarter),
            *((-x, y) for x, y in reversed(quarter)),
        ]
    corners = {"square": (0.125, 0.375, 0.625, 0.875), "diamond": (0, 0.25, 0.5, 0.75), "triangle": (0, 1 / 3, 2 / 3)}
    return _ring([(1.0, turn) for turn in corners[shape]])


def _ring(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points given by radius and share of a full turn, clockwise from the top."""
    return [(radius * sin(2 * pi * turn), -radius * cos(2 * pi * turn)) for radius, turn in corners]


TEXTURES = 24


@cache
def textures(held_out: bool) -> np.ndarray:
    """Return dark backgrounds, uint8 [2 * TEXTURES, SPECKS, SPECKS, 3]: plain ones first, then cluttered ones."""
    draw = np.random.default_rng(int(held_out))
    grounds = np.empty((2 * TEXTURES, SPECKS, SPECKS, 3), np.uint8)
    for at in range(2 * TEXTURES):
        coarse = draw.uniform(15, 75, (8, 8, 1)) + draw.uniform(-12, 12, (8, 8, 3))
        ground = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        ground = ground.resize((SPECKS, SPECKS), Image.Resampling.BICUBIC)
        if at >= TEXTURES:
            _scribble(ImageDraw.Draw(ground), draw)
        noisy = np.asarray(ground) + draw.normal(0, draw.uniform(2, 10), (SPECKS, SPECKS, 1))
        grounds[at] = noisy.clip(0, 255)
    return grounds


def _scribble(pen: ImageDraw.ImageDraw, draw: np.random.Generator) -> None:
    """Draw grey lines, arcs, boxes and faint glyphs, which no question is about."""
    for _ in range(260):
        x, y = draw.integers(0, SPECKS, 2).tolist()
        width, height = draw.integers(8, 60, 2).tolist()
        grey = tuple(int(part) for part in draw.integers(70, 120) + draw.integers(-8, 8, 3))
        style = draw.integers(0, 4)
        if style == 0:
            pen.line((x, y, x + width, y + height - 30), grey, int(draw.integers(1, 4)))
        elif style == 1:
            pen.arc((x, y, x + width, y + height), int(draw.integers(0, 180)), int(draw.integers(180, 360)), grey, 2)
        elif style == 2:
            pen.rectangle((x, y, x + width // 2, y + height // 2), outline=grey)
        else:
            font = ImageFont.load_default(int(draw.integers(14, 30)))
            pen.text((x, y), str(draw.choice(list(DIGITS + LETTERS))), grey, font)
