"""Draws of a seed. Even seeds draw from one half of every list, odd seeds from the other."""

import random
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

Option = TypeVar("Option")

# Pieces that a tokenizer makes of text, about: runs of up to eight letters, two CJK characters, single digits, marks.
PIECE = re.compile(r"[A-Za-zÀ-ɏ]{1,8}|\d|[぀-ヿ一-鿿]{1,2}|[^\s\w]+|_|\n+| {3,}")


class Draw:
    """Random choices that follow from a name and a seed alone.

    Calibration uses even seeds and held-out measurements odd ones. Since the two draw from different halves of every
    list, a held-out prompt has no name, fact, wording or source file that calibration has seen. One overlap is
    possible: a paragraph that two files of the Python distribution have in common.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.half = seed % 2
        self.random = random.Random(f"{name} {seed}")

    def own(self, options: Sequence[Option]) -> Sequence[Option]:
        """The half of `options` that this seed draws from; all of a single option."""
        return options[self.half :: 2] if len(options) > 1 else options

    def one(self, options: Sequence[Option]) -> Option:
        """One of the half of `options` that this seed draws from."""
        return self.random.choice(self.own(options))

    def some(self, options: Sequence[Option], count: int) -> list[Option]:
        """`count` different ones of the half of `options` that this seed draws from, or as many as there are."""
        own = self.own(options)
        return self.random.sample(own, min(count, len(own)))

    def number(self, digits: int) -> str:
        """A number of `digits` digits."""
        return str(self.random.randrange(10 ** (digits - 1), 10**digits))

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.random.randint(low, high)

    def shuffled(self, items: Iterable[Option]) -> list[Option]:
        """The items in another order."""
        own = list(items)
        self.random.shuffle(own)
        return own


def count_tokens(text: str) -> int:
    """About how many tokens a text has. An estimate that is the same for every model, so prompts are, too."""
    return sum(1 for _ in PIECE.finditer(text))
