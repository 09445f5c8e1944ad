"""Samples: a prompt and the answer wanted, read from JSONL or generated from a seed."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from deltahalt.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One question. answer None: whatever the full model says is the answer. lead: words put into the model's mouth
    before its answer, so that a talkative model comes to the point."""

    task: str
    prompt: str
    answer: str | None = None
    lead: str = ""


def load_samples(data: str, *, characters: int, seed: int) -> list[Sample]:
    """Samples named by `data`: a JSONL file, or "generated:COUNT". Raises InputError."""
    kind, _, count = data.partition(":")
    if kind != "generated":
        return read_samples(Path(data))
    if not count.isdigit() or int(count) == 0:
        raise InputError(f"data is {data!r}: give generated:COUNT with a count of 1 or more, or a JSONL file")
    return generate_samples(int(count), characters, seed)


def read_samples(path: Path) -> list[Sample]:
    """Samples of a JSONL file: an object a line with `task`, `prompt`, `answer` and, if wanted, `lead`.

    Raises InputError for a missing file or a line that is no sample.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: give JSONL with task, prompt and answer, or generated:COUNT")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_read_sample(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _read_sample(line: str, where: str) -> Sample:
    try:
        row = json.loads(line)
        return Sample(str(row["task"]), str(row["prompt"]), row["answer"], row.get("lead", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: not an object with task, prompt and answer") from error


def generate_samples(count: int, characters: int, seed: int = 0) -> list[Sample]:
    """`count` samples, the tasks in turn, each prompt about `characters` long; the same seed gives the same samples."""
    draw = random.Random(seed)
    tasks = list(TASKS.items())
    return [
        Sample(name, *make(draw, characters)) for name, make in (tasks[number % len(tasks)] for number in range(count))
    ]


CITIES = ["Lisbon", "Oslo", "Quito", "Hanoi", "Tunis", "Perth", "Turin", "Leeds", "Ghent", "Osaka", "Lagos", "Cusco"]
LABELS = {
    "fruit": ["apple", "pear", "plum", "fig", "lemon", "cherry", "quince"],
    "tool": ["saw", "hammer", "chisel", "plane", "file", "drill", "awl"],
}


def _haystack(draw: random.Random, characters: int) -> list[str]:
    """Paragraphs of the standard library's help texts, in a drawn order, about `characters` in all."""
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


def _needle(draw: random.Random, characters: int, needles: int = 1) -> tuple[str, str, str]:
    cities = draw.sample(CITIES, needles)
    numbers = [str(draw.randrange(10_000, 100_000)) for _ in cities]
    facts = [f"The special magic number for {c} is {n}." for c, n in zip(cities, numbers, strict=True)]
    text = _planted(draw, characters, facts)
    question = f"What is the special magic number for {cities[0]} mentioned in the text above?"
    return f"{text}\n\n{question}", f" {numbers[0]}", f"The special magic number for {cities[0]} is"


def _many_needles(draw: random.Random, characters: int) -> tuple[str, str, str]:
    return _needle(draw, characters, needles=6)


def _key_value(draw: random.Random, characters: int) -> tuple[str, str, str]:
    pairs = {f"{draw.getrandbits(32):08x}": f"{draw.getrandbits(32):08x}" for _ in range(characters // 26)}
    key = draw.choice(list(pairs))
    text = json.dumps(pairs, indent=0)
    return f"{text}\n\nWhat is the value of the key {key}?", pairs[key], f'The value of the key {key} is "'


def _few_shot(draw: random.Random, characters: int) -> tuple[str, str, str]:
    blocks, size = [], 0
    while size < characters:
        label = draw.choice(list(LABELS))
        words = " ".join(draw.choices(LABELS[label], k=12))
        blocks.append(f"Words: {words}\nKind: {label}")
        size += len(blocks[-1])
    label = draw.choice(list(LABELS))
    words = " ".join(draw.choices(LABELS[label], k=12))
    return "\n\n".join(blocks) + f"\n\nWhich kind are these words?\nWords: {words}", f" {label}", "Kind:"


def _copy(draw: random.Random, characters: int) -> tuple[str, str, str]:
    words = [word for paragraph in _haystack(draw, 20_000) for word in paragraph.split() if word.isalpha()]
    passage = " ".join(draw.sample(words, 40))
    text = _planted(draw, characters, [f"Passage seven: {passage}."])
    return f"{text}\n\nRepeat passage seven word for word.", f" {passage}", "Passage seven:"


def _summary(draw: random.Random, characters: int) -> tuple[str, None]:
    return "\n\n".join(_haystack(draw, characters)) + "\n\nSummarize the text above in three sentences.", None


TASKS: dict[str, Callable[[random.Random, int], tuple[str, str | None] | tuple[str, str | None, str]]] = {
    "needle": _needle,
    "many-needles": _many_needles,
    "key-value": _key_value,
    "few-shot": _few_shot,
    "copy": _copy,
    "summary": _summary,
}
