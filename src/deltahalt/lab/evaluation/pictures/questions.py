"""Questions about a scene, with answers that follow from the scene's items.

Each kind stands for a benchmark in the paper's Tables 5 and 6: `number` and `word` for OCRBench, `chart` for ChartQA,
`presence` for POPE, `relation` and `compare` for GQA and MME, the others for MMStar's perception tasks.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable

from deltahalt.lab.evaluation.pictures.scenes import COLOURS, HELD_OUT_PAIRS, PAIRS, SHAPES, Item, Scene

Pair = tuple[str, str]  # question and answer


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _written(kind: str) -> Callable[[Scene, random.Random], Pair | None]:
    def ask(scene: Scene, draw: random.Random) -> Pair | None:
        found = scene.of(kind)
        if not found:
            return None
        item = draw.choice(found)
        if len(found) == 1 and draw.random() < 0.3:
            return f"What is the {kind}?", item.text
        return f"What is the {item.colour} {kind}?", item.text

    return ask


def _count(scene: Scene, draw: random.Random) -> Pair:
    shapes = scene.of("shape")
    colours, names = Counter(item.colour for item in shapes), Counter(item.text for item in shapes)
    asked = defaultdict(list)
    for colour in COLOURS:
        asked[colours[colour]].append(f"{colour} shapes")
    for name in SHAPES:
        asked[names[name]].append(_plural(name))
    for (colour, name), number in Counter((item.colour, item.text) for item in shapes).items():
        asked[number].append(f"{colour} {_plural(name)}")
    number = draw.choice([number for number in asked if number < 10])
    return f"How many {draw.choice(asked[number])} are there?", str(number)


def _colour(scene: Scene, draw: random.Random) -> Pair | None:
    names = Counter(item.text for item in scene.items)
    once = [item for item in scene.items if names[item.text] == 1]
    if not once:
        return None
    item = draw.choice([item for item in once if item.kind == "shape"] or once if draw.random() < 0.6 else once)
    return f"What colour is the {_name(item)}?", item.colour


def _shape(scene: Scene, draw: random.Random) -> Pair | None:
    shapes = scene.of("shape")
    colours = Counter(item.colour for item in shapes)
    once = [item for item in shapes if colours[item.colour] == 1]
    if not once:
        return None
    item = draw.choice(once)
    return f"What shape is {item.colour}?", item.text


def _position(scene: Scene, draw: random.Random) -> Pair | None:
    places = [(item, place) for item in _singular(scene) if (place := _place(scene, item))]
    if not places:
        return None
    item, place = draw.choice(places)
    return f"Where is the {_described(item)}?", place


def _place(scene: Scene, item: Item) -> str | None:
    """Return the one of nine regions that an item is in; None if it is near a border between two."""
    words = []
    pairs = zip(item.centre(), (scene.height, scene.width), (("top", "", "bottom"), ("left", "", "right")), strict=True)
    for at, side, names in pairs:
        third = 3 * at / side
        if min(abs(third - 1), abs(third - 2)) < 0.12:
            return None
        words.append(names[int(third)])
    return " ".join(filter(None, words)) or "centre"


def _presence(scene: Scene, draw: random.Random) -> Pair | None:
    shapes = scene.of("shape")
    present = {(item.colour, item.text) for item in shapes}
    if draw.random() < 0.5 and present:
        colour, name = draw.choice(sorted(present))
        return _is_there(colour, name), "yes"
    absent = [pair for pair in PAIRS if pair not in present and (scene.held_out or pair not in HELD_OUT_PAIRS)]
    colours, names = {item.colour for item in shapes}, {item.text for item in shapes}
    near = [pair for pair in absent if pair[0] in colours and pair[1] in names]
    colour, name = draw.choice(near if near and draw.random() < 0.7 else absent)
    return _is_there(colour, name), "no"


def _is_there(colour: str, name: str) -> str:
    return f"Is there a{'n' * (colour == 'orange')} {colour} {name}?"


def _chart(scene: Scene, draw: random.Random) -> Pair | None:
    if not scene.bars:
        return None
    bar = draw.choice(scene.bars)
    highest, lowest = (pick(scene.bars, key=lambda bar: bar.value) for pick in (max, min))
    return draw.choice(
        [
            ("Which bar is highest?", highest.label),
            ("Which bar is lowest?", lowest.label),
            (f"What colour is bar {bar.label}?", bar.colour),
            (f"What is the value of bar {bar.label}?", str(bar.value)),
            (f"What is the value of the {bar.colour} bar?", str(bar.value)),
        ]
    )


def _relation(scene: Scene, draw: random.Random) -> Pair | None:
    cells = {(item.row, item.column): item for item in scene.items}
    steps = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    found = [
        (item, words, cells[item.row + down, item.column + right])
        for item in _singular(scene)
        for words, (down, right) in steps.items()
        if (item.row + down, item.column + right) in cells
    ]
    if not found:
        return None
    item, words, other = draw.choice(found)
    return f"What is {words} the {_described(item)}?", str(other)


def _compare(scene: Scene, draw: random.Random) -> Pair | None:
    attribute = draw.choice(("colour", "text"))
    counts = Counter(getattr(item, attribute) for item in scene.of("shape"))
    pairs = [(more, less) for more in counts for less in counts if counts[more] > counts[less]]
    if not pairs:
        return None
    more, less = draw.choice(pairs)
    answer = draw.choice(("yes", "no"))
    first, second = (more, less) if answer == "yes" else (less, more)
    if attribute == "text":
        return f"Are there more {_plural(first)} than {_plural(second)}?", answer
    return f"Are there more {first} shapes than {second} shapes?", answer


def _transcribe(scene: Scene, draw: random.Random) -> Pair | None:
    """Ask for everything written, or every shape, in raster order: dense supervision for training."""
    written, shapes = scene.of("number", "word"), scene.of("shape")
    if written and (len(shapes) > 6 or draw.random() < 0.7):
        return "Read all.", ", ".join(map(str, written))
    return ("List the shapes.", ", ".join(map(str, shapes))) if 0 < len(shapes) <= 6 else None


def _name(item: Item) -> str:
    """Return an item's name without its colour."""
    return item.text if item.kind == "shape" else f"{item.kind} {item.text}"


def _described(item: Item) -> str:
    return str(item) if item.kind == "shape" else _name(item)


def _singular(scene: Scene) -> list[Item]:
    """Return the items whose description fits no other item."""
    counts = Counter(map(_described, scene.items))
    return [item for item in scene.items if counts[_described(item)] == 1]


KINDS: dict[str, Callable[[Scene, random.Random], Pair | None]] = {
    "number": _written("number"),
    "word": _written("word"),
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "position": _position,
    "presence": _presence,
    "chart": _chart,
    "relation": _relation,
    "compare": _compare,
    "transcribe": _transcribe,
}
ASKED = [kind for kind in KINDS if kind != "transcribe"]  # the kinds that accuracy is measured on


def ask(scene: Scene, kind: str, draw: random.Random) -> Pair | None:
    """Return a question of this kind and its answer; None if the scene has nothing to ask about."""
    return KINDS[kind](scene, draw)
