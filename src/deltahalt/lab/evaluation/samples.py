"""Samples: prompts and expected answers, read from JSONL or generated from a seed."""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics
from types import NoneType
from typing import Any

from deltahalt.errors import InputError
from deltahalt.lab.evaluation.shapes import ShapedPrompt, make_prompt, shape_names
from deltahalt.lab.jsonl import Kinds, read_jsonl, spoken

HINT = "give JSONL with task, prompt and answer, generated:COUNT or shapes:COUNT"
FIELDS: dict[str, Kinds] = {"task": str, "prompt": str, "answer": (str, NoneType)}
SHAPED = ("shapes", "held-out-shapes")

CHARACTERS = 12_000  # default length of a generated prompt
MOST_CHARACTERS = 200_000_000  # largest total length of the generated prompts, which are kept in memory


@dataclass(frozen=True)
class Sample:
    """One prompt with its question and answer.

    prompt: the text before the question. question: a separate question, which follows after a blank line.
    answer: the expected answer; None to take the full model's own answer.
    lead: beginning of the model's reply, given to it so that the answer follows at once.
    shaped: the prompt as a chat; `prompt` is then its text.
    """

    task: str
    prompt: str
    answer: str | None = None
    lead: str = ""
    question: str = ""
    shaped: ShapedPrompt | None = None

    @property
    def text(self) -> str:
        """Prompt and question."""
        return f"{self.prompt}\n\n{self.question}" if self.question else self.prompt


def load_samples(data: str, *, characters: int | None = None, seed: int | None = None) -> list[Sample]:
    """Return the samples that `data` names: a JSONL file, "generated:COUNT", "shapes:COUNT" or "shapes:COUNT:FOLDER".

    Shapes come from `shape_samples`, "held-out-shapes" from its held-out half; FOLDER has texts to make them from.
    "generated:COUNT+shapes:COUNT" names both, whose samples then take turns.

    Args:
        data: The name.
        characters: Length of a generated prompt; None for `CHARACTERS`.
        seed: Seed of generated samples; None for 0.

    Raises:
        InputError: For data that cannot be read or generated, and for `characters` or `seed` with a file.
    """
    parts = data.split("+")
    if len(parts) > 1 and all(part.partition(":")[0] in ("generated", *SHAPED) for part in parts):
        return taking_turns(load_samples(part, characters=characters, seed=seed) for part in parts)
    kind, _, rest = data.partition(":")
    if kind not in ("generated", *SHAPED):
        if characters is not None or seed is not None:
            raise InputError(
                f"{data} is a file, whose samples are given: leave --characters and --seed out, or give generated:COUNT"
            )
        return read_samples(Path(data))
    count, _, folder = rest.partition(":")
    if not count.isdecimal() or int(count[:12]) == 0 or (folder and kind == "generated"):
        raise InputError(
            f"data is {data!r}: give generated:COUNT, shapes:COUNT or shapes:COUNT:FOLDER, with a count of 1 or more, "
            "or a JSONL file"
        )
    length = CHARACTERS if characters is None else characters
    if int(count[:12]) * length > MOST_CHARACTERS:
        raise InputError(
            f"{count} samples of {length:,} characters exceed {MOST_CHARACTERS:,} in all: give fewer or shorter ones"
        )
    if kind == "generated":
        return generate_samples(int(count), length, seed or 0)
    texts = Path(folder) if folder else None
    return shape_samples(int(count), length, 2 * (seed or 0) + SHAPED.index(kind), texts)


def taking_turns(groups: Iterable[Sequence[Sample]]) -> list[Sample]:
    """Return the first sample of each group, then the second of each that has one, and so on."""
    return [sample for turn in zip_longest(*groups) for sample in turn if sample is not None]


def shape_samples(count: int, characters: int, seed: int = 0, folder: Path | None = None) -> list[Sample]:
    """Return `count` prompts, the shapes in turn, each of about `characters` / 4 tokens.

    An even seed draws from the half for calibration, an odd one from the held-out half (see `Draw`). folder: the user's
    own texts to make prompts from. Raises as `make_prompt` does.
    """
    names = shape_names()
    first = 1_000 * (seed // 2) + seed % 2
    made = [
        make_prompt(names[number % len(names)], first + 2 * (number // len(names)), characters // 4, folder)
        for number in range(count)
    ]
    return [shaped_sample(prompt) for prompt in made]


def shaped_sample(prompt: ShapedPrompt) -> Sample:
    """Return the sample of a prompt of a shape."""
    return Sample(prompt.shape, prompt.text, prompt.answer, shaped=prompt)


def read_samples(path: Path) -> list[Sample]:
    """Read a JSONL file: each line is an object with `task`, `prompt`, `answer` and, optionally, `lead` and `question`.

    Raises InputError for a file that is missing or has no sample, and for a line that is not a sample.
    """
    samples = [_sample(fields, where) for where, fields in read_jsonl(path, hint=HINT, fields=FIELDS)]
    if not samples:
        raise InputError(f"{path} has no samples: {HINT}")
    return samples


def _sample(fields: dict[str, Any], where: str) -> Sample:
    optional = {name: fields.get(name, "") for name in ("lead", "question")}
    for name, value in optional.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {name} is {spoken(value)}, not text: {HINT}")
    return Sample(*(fields[name] for name in FIELDS), **optional)


def generate_samples(count: int, characters: int, seed: int = 0) -> list[Sample]:
    """Return `count` samples, the tasks in turn, each prompt of about `characters`. Equal seeds give equal samples."""
    draw = random.Random(seed)
    return [make(draw, characters) for make in (TASKS[number % len(TASKS)] for number in range(count))]


CITIES = ["Lisbon", "Oslo", "Quito", "Hanoi", "Tunis", "Perth", "Turin", "Leeds", "Ghent", "Osaka", "Lagos", "Cusco"]
PEOPLE = ["Amara", "Bruno", "Chloe", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaori", "Liam"]
FAMILIES = ["Adler", "Brandt", "Costa", "Dupont", "Eriksen", "Ferro", "Gruber", "Horvat", "Ivanov", "Jansen", "Keller"]
TRADES = ["baker", "surveyor", "dentist", "weaver", "pilot", "locksmith", "botanist", "tailor", "plumber", "editor"]
INSTRUMENTS = ["cello", "flute", "banjo", "organ", "trumpet", "harp", "accordion", "viola", "clarinet", "mandolin"]
DISHES = [
    "lentil soup",
    "plum cake",
    "grilled eel",
    "onion tart",
    "rice pudding",
    "fish stew",
    "rye bread",
    "dumplings",
]
FEARS = ["thunder", "deep water", "spiders", "heights", "geese", "lifts", "clowns", "tunnels", "needles", "crowds"]
REASONS = [
    "an aunt fell ill",
    "the mill burned down",
    "the harbour silted up",
    "a cousin found work",
    "rents had doubled",
]
PORTRAIT = [
    "The family of {name} had left {city} in {year}, when {reason}.",
    "By trade a {trade}, {name} keeps a small workshop behind the station.",
    "On Sundays the neighbours of {name} hear the {instrument} through the wall.",
    "Guests are given {dish}, whatever the season.",
    "Nobody in the street knows how much {name} fears {fear}.",
]
ASKED = [
    ("Why did the family of the {trade} who plays the {instrument} move away from their city?", "{reason}"),
    ("What does the {trade} who plays the {instrument} serve to visitors?", "{dish}"),
    ("What is the {trade} who plays the {instrument} afraid of?", "{fear}"),
    ("In which year did the family of the {trade} who plays the {instrument} leave their city?", "{year}"),
]
ASKED_OF_SEVERAL = [
    ("fear", "What are these people afraid of: {people}? Give one answer for each, in this order."),
    ("dish", "What do these people serve to visitors: {people}? Give one answer for each, in this order."),
    ("name", "What are the names of {people}? Give one name for each, in this order."),
]
RIVERS = ["Danube", "Tagus", "Volta", "Mekong", "Loire", "Ebro", "Tiber", "Elbe", "Niger", "Thames", "Ural", "Yukon"]
LABELS = {
    "fruit": ["apple", "pear", "plum", "fig", "lemon", "cherry", "quince"],
    "tool": ["saw", "hammer", "chisel", "plane", "file", "drill", "awl"],
}


def _haystack(draw: random.Random, characters: int) -> list[str]:
    """Return paragraphs of Python's help topics in random order, of about `characters` in all."""
    names, size = sorted(topics), 0
    paragraphs: list[str] = []
    draw.shuffle(names)
    for name in names:
        for paragraph in topics[name].split("\n\n"):
            if size >= characters:
                return paragraphs
            paragraphs.append(paragraph.strip())
            size += len(paragraph)
    return paragraphs


def _planted(draw: random.Random, characters: int, facts: list[str]) -> str:
    paragraphs = _haystack(draw, characters)
    for fact in facts:
        paragraphs.insert(draw.randrange(1, len(paragraphs)), fact)
    return "\n\n".join(paragraphs)


def _needle(draw: random.Random, characters: int) -> Sample:
    return _needles("needle", draw, characters, 1)


def _many_needles(draw: random.Random, characters: int) -> Sample:
    return _needles("many-needles", draw, characters, 6)


def _needles(task: str, draw: random.Random, characters: int, needles: int) -> Sample:
    cities = draw.sample(CITIES, needles)
    numbers = [str(draw.randrange(10_000, 100_000)) for _ in cities]
    facts = [f"The special magic number for {c} is {n}." for c, n in zip(cities, numbers, strict=True)]
    return Sample(
        task,
        _planted(draw, characters, facts),
        f" {numbers[0]}",
        f"The special magic number for {cities[0]} is",
        f"What is the special magic number for {cities[0]} mentioned in the text above?",
    )


def _key_value(draw: random.Random, characters: int) -> Sample:
    pairs = _pairs(draw, characters)
    key = draw.choice(list(pairs))
    question = f"What is the value of the key {key}?"
    return Sample("key-value", json.dumps(pairs, indent=0), pairs[key], f'The value of the key {key} is "', question)


def _key_values(draw: random.Random, characters: int) -> Sample:
    pairs = _pairs(draw, characters)
    keys = draw.sample(list(pairs), min(4, len(pairs)))
    question = f"What are the values of the keys {_listed(keys)}? Give one value for each, in this order."
    return Sample("key-values", json.dumps(pairs, indent=0), _listed(pairs[key] for key in keys), "", question)


def _pairs(draw: random.Random, characters: int) -> dict[str, str]:
    """Return hexadecimal keys and values in half the characters, since they make twice as many tokens as words."""
    return {f"{draw.getrandbits(32):08x}": f"{draw.getrandbits(32):08x}" for _ in range(characters // 52)}


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _few_shot(draw: random.Random, characters: int) -> Sample:
    blocks, size = [], 0
    while size < characters:
        label, words = _labelled(draw)
        blocks.append(f"Words: {words}\nKind: {label}")
        size += len(blocks[-1])
    label, words = _labelled(draw)
    return Sample("few-shot", "\n\n".join(blocks), f" {label}", "Kind:", f"Which kind are these words?\nWords: {words}")


def _labelled(draw: random.Random) -> tuple[str, str]:
    label = draw.choice(list(LABELS))
    return label, " ".join(draw.choices(LABELS[label], k=12))


def _copy(draw: random.Random, characters: int) -> Sample:
    words = [word for paragraph in _haystack(draw, 20_000) for word in paragraph.split() if word.isalpha()]
    passage = " ".join(draw.sample(words, 40))
    text = _planted(draw, characters, [f"Passage seven: {passage}."])
    return Sample("copy", text, f" {passage}", "Passage seven:", "Repeat passage seven word for word.")


def _two_facts(draw: random.Random, characters: int) -> Sample:
    people, cities, rivers = (draw.sample(names, 4) for names in (PEOPLE, CITIES, RIVERS))
    facts = [f"{person} moved to {city} last spring." for person, city in zip(people, cities, strict=True)]
    facts += [
        f"The boats of {city} are built on the river {river}." for city, river in zip(cities, rivers, strict=True)
    ]
    return Sample(
        "two-facts",
        _planted(draw, characters, facts),
        f" {rivers[0]}",
        f"{people[0]} moved to {cities[0]}, where boats are built on the river",
        f"On which river are the boats built of the city that {people[0]} moved to?",
    )


def _deliveries(draw: random.Random, characters: int) -> Sample:
    """Make a text with facts of one kind spread over it; the answer lists half of them."""
    cities = draw.sample(CITIES, 10)
    wanted, other = draw.sample(DISHES, 2)
    ordered = [wanted if number % 2 else other for number in range(len(cities))]
    facts = [f"The kitchen in {city} has ordered {dish}." for city, dish in zip(cities, ordered, strict=True)]
    text = _planted(draw, characters, facts)
    found = [
        city for _, city, dish in sorted(zip(map(text.index, facts), cities, ordered, strict=True)) if dish == wanted
    ]
    question = f"List the cities whose kitchens have ordered {wanted}, in the order of the text, with commas between."
    return Sample("deliveries", text, f" {_listed(found)}", f"The kitchens that have ordered {wanted} are in", question)


def _portraits(draw: random.Random, characters: int) -> Sample:
    """Ask about one of many portraits, which only the trade and the instrument identify."""
    people = _people(draw, characters)
    text, asked, (question, answer) = _painted(draw, people), draw.choice(people), draw.choice(ASKED)
    return Sample("portraits", text, answer.format(**asked), question=question.format(**asked))


def _group_portrait(draw: random.Random, characters: int) -> Sample:
    """Ask for the same fact in several of many portraits."""
    people = _people(draw, characters)
    asked = draw.sample(people, min(4, len(people)))
    fact, question = draw.choice(ASKED_OF_SEVERAL)
    listed = _listed("the {trade} who plays the {instrument}".format(**person) for person in asked)
    answer = _listed(str(person[fact]) for person in asked)
    return Sample("group-portrait", _painted(draw, people), answer, question=question.format(people=listed))


def _people(draw: random.Random, characters: int) -> list[dict[str, object]]:
    """Return as many fictional people as fill the characters."""
    names = [f"{first} {last}" for first in PEOPLE for last in FAMILIES]
    known_by = [(trade, instrument) for trade in TRADES for instrument in INSTRUMENTS]
    count = min(len(known_by), max(1, characters // 380))
    return [
        {
            "name": name,
            "trade": trade,
            "instrument": instrument,
            "city": draw.choice(CITIES),
            "year": draw.randrange(1960, 2020),
            "dish": draw.choice(DISHES),
            "fear": draw.choice(FEARS),
            "reason": draw.choice(REASONS),
        }
        for name, (trade, instrument) in zip(draw.sample(names, count), draw.sample(known_by, count), strict=True)
    ]


def _painted(draw: random.Random, people: list[dict[str, object]]) -> str:
    """Return a paragraph about each person, made of the same sentences in random order."""
    return "\n\n".join(" ".join(draw.sample(PORTRAIT, len(PORTRAIT))).format(**person) for person in people)


def _code(draw: random.Random, characters: int) -> Sample:
    files = sorted(path for path in Path(json.__file__).parents[1].glob("*.py") if path.stat().st_size > 20_000)
    lines = draw.choice(files).read_text(encoding="utf-8").splitlines(keepends=True)
    last = draw.choice([at for at, line in enumerate(lines) if len(line.strip()) > 20 and at > len(lines) // 2])
    before = "".join(lines[:last])[-characters:]
    return Sample("code", f"Complete the code.\n\n{before}", lines[last].strip(), question="Next line of code:")


def _summary(draw: random.Random, characters: int) -> Sample:
    text = "\n\n".join(_haystack(draw, characters))
    return Sample("summary", text, question="Summarize the text above in three sentences.")


TASKS: list[
    Callable[[random.Random, int], Sample]
] = [  # the order decides which samples a seed gives: add new tasks at the end
    _needle,
    _many_needles,
    _key_value,
    _few_shot,
    _copy,
    _two_facts,
    _code,
    _summary,
    _portraits,
    _key_values,
    _deliveries,
    _group_portrait,
]
