"""Needle in a haystack (Kamradt 2023): one fact, inserted at a given depth of an unrelated long text."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltahalt.answering.documents import read_document
from deltahalt.errors import InputError
from deltahalt.lab.harness.local import in_turn

DEPTHS = (
    0.5,
    0.0,
    1.0,
    0.2,
    0.8,
    0.4,
    0.6,
    0.1,
    0.9,
    0.3,
    0.7,
)  # in an order whose first few, which a --limit keeps, are far apart
CITIES = ("Cork", "Dakar", "Hanoi", "Lima", "Lisbon", "Nairobi", "Oslo", "Perth", "Quito", "Riga", "Turin")
ROOM = 128  # number of tokens reserved for needle, question and chat format


def needle_rows(folder: Path, tokenizer: Any, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return rows in RULER's format, with a needle at each of DEPTHS for each prompt length in tokens.

    The haystack is folder/essays/*.txt in alphabetical order, repeated if it is too short. Every call returns the same
    rows. Raises InputError without essays, and for a length of `ROOM` or less.
    """
    essays = sorted((folder / "essays").glob("*.txt"))
    if not essays:
        raise InputError(f"there are no essays in {folder / 'essays'}: put .txt files there, the needle's haystack")
    ids = tokenizer("\n\n".join(read_document(str(essay)) for essay in essays), add_special_tokens=False)
    draw, rows = random.Random(0), []
    for length in lengths:
        if length <= ROOM:
            raise InputError(
                f"a needle prompt of {length} tokens has no room for a haystack: give a length above {ROOM}"
            )
        tokens = (ids["input_ids"] * (length // len(ids["input_ids"]) + 1))[: length - ROOM]
        text = str(tokenizer.decode(tokens))
        rows.append([_row(draw, text, depth, length) for depth in DEPTHS])
    return in_turn(rows)


def _row(draw: random.Random, text: str, depth: float, length: int) -> dict[str, Any]:
    city, number = draw.choice(CITIES), str(draw.randrange(10_000, 100_000))
    # The needle follows the last sentence that ends before the depth.
    at = len(text) if depth == 1 else text.rfind(". ", 0, int(depth * len(text))) + 2 if depth else 0
    haystack = f"{text[:at]} The secret number of {city} is {number}. {text[at:]}".strip()
    return {
        "input": f"{haystack}\n\nWhat is the secret number of {city}, by the text above?",
        "outputs": [number],
        "gen_prefix": f"The secret number of {city} is",
        "max_length": length,
    }
