"""Needle in a haystack (Kamradt 2023): one fact, planted at a depth of a long text that has nothing to do with it."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltahalt.answering.documents import read_document
from deltahalt.errors import InputError
from deltahalt.lab.harness.local import in_turn

DEPTHS = (0.5, 0.0, 1.0, 0.2, 0.8, 0.4, 0.6, 0.1, 0.9, 0.3, 0.7)  # the first few, which a --limit leaves, are far apart
CITIES = ("Cork", "Dakar", "Hanoi", "Lima", "Lisbon", "Nairobi", "Oslo", "Perth", "Quito", "Riga", "Turin")
ROOM = 128  # tokens left for needle, question and chat format


def needle_rows(folder: Path, tokenizer: Any, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """A needle at each of DEPTHS, for each prompt length in tokens, in RULER's fields; the same rows at every call.

    The haystack is folder/essays/*.txt in alphabetical order, repeated if too short. Raises InputError without essays.
    """
    essays = sorted((folder / "essays").glob("*.txt"))
    if not essays:
        raise InputError(f"there are no essays in {folder / 'essays'}: put .txt files there, the needle's haystack")
    ids = tokenizer("\n\n".join(read_document(str(essay)) for essay in essays), add_special_tokens=False)
    draw, rows = random.Random(0), []
    for length in lengths:
        if length <= ROOM:
            raise InputError(f"a needle prompt of {length} tokens has no haystack: give more than {ROOM}")
        tokens = (ids["input_ids"] * (length // len(ids["input_ids"]) + 1))[: length - ROOM]
        text = str(tokenizer.decode(tokens))
        rows.append([_row(draw, text, depth, length) for depth in DEPTHS])
    return in_turn(rows)


def _row(draw: random.Random, text: str, depth: float, length: int) -> dict[str, Any]:
    city, number = draw.choice(CITIES), str(draw.randrange(10_000, 100_000))
    # After the last sentence that ends before the depth.
    at = len(text) if depth == 1 else text.rfind(". ", 0, int(depth * len(text))) + 2 if depth else 0
    haystack = f"{text[:at]} The secret number of {city} is {number}. {text[at:]}".strip()
    return {
        "input": f"{haystack}\n\nWhat is the secret number of {city}, by the text above?",
        "outputs": [number],
        "gen_prefix": f"The secret number of {city} is",
        "max_length": length,
    }
