"""Rules that rate a generated answer, in [0, 1]."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Protocol

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Scorer(Protocol):
    """Rates what a model generated: 1 for right, 0 for wrong, between for a part."""

    def __call__(self, said: str) -> float:
        """The rating of `said`, in [0, 1]."""
        ...


def plain(text: str) -> str:
    """Text without case, marks of emphasis, separators of thousands and doubled white space."""
    text = re.sub(r"(?<=\d)[,'\u202f\u00a0](?=\d{3}(?!\d))", "", text.casefold())
    return " ".join(re.sub(r"[*`_\"“”„«»\\]", " ", text).split())


def holds(said: str, wanted: str) -> bool:
    """Whether an answer has these words or this number in it, not as a part of a longer word."""
    wanted = plain(wanted)
    before = r"(?<![a-z0-9])" if wanted[:1].isascii() else ""
    after = r"(?![a-z0-9])" if wanted[-1:].isascii() else ""
    return re.search(before + re.escape(wanted) + after, plain(said)) is not None


@dataclass(frozen=True)
class Names:
    """Right if the answer names `wanted` and none of `others`. also: other spellings of `wanted`."""

    wanted: str
    others: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def __call__(self, said: str) -> float:
        right = any(holds(said, spelling) for spelling in (self.wanted, *self.also))
        return float(right and not any(holds(said, other) for other in self.others))


@dataclass(frozen=True)
class NamesAll:
    """The share of `wanted` that the answer names."""

    wanted: tuple[str, ...]

    def __call__(self, said: str) -> float:
        return sum(holds(said, one) for one in self.wanted) / len(self.wanted)


@dataclass(frozen=True)
class Counts:
    """Right if the last number in the answer is `wanted`, in figures or as an English word.

    Numbers of three and more figures are no counts.
    """

    wanted: int

    def __call__(self, said: str) -> float:
        words = "|".join(NUMBERS)
        found = re.findall(rf"(?<![\w.])(?:\d{{1,2}}|{words})(?!\w|[.,]\d)", plain(said))
        values = [int(one) if one.isdigit() else NUMBERS.index(one) for one in found]
        return float(bool(values) and values[-1] == self.wanted)


@dataclass(frozen=True)
class Quotes:
    """The share of `lines` that the answer repeats word for word, in their order; indentation does not count."""

    lines: tuple[str, ...]

    def __call__(self, said: str) -> float:
        wanted, given = _stripped(self.lines), _stripped(said.splitlines())
        blocks = SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks) / len(wanted)


@dataclass(frozen=True)
class Both:
    """Right if the fact is right and the answer obeys a rule. rule: whether an answer obeys."""

    fact: Scorer
    rule: Callable[[str], bool]

    def __call__(self, said: str) -> float:
        return self.fact(said) if self.rule(said) else 0.0


def _stripped(lines: Sequence[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("```")]
