"""A description of each option of a policy or method: its type, its default, and its meaning from the docstrings."""

import inspect
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from deltahalt.policies.options import WANTED, options_of, write_value


@dataclass(frozen=True)
class Option:
    """One option. type: the values that it takes, in words. default: as in a policy's text."""

    name: str
    type: str
    default: str
    meaning: str


def describe(kind: Any) -> list[Option]:
    """The options of a policy or method class, in the order of its fields.

    Example:
        >>> [option.name for option in describe(Dash)][:2]
        ['start', 'pruning_ratio']
    """
    hints, defaults = options_of(kind), {option.name: option.default for option in fields(kind)}
    meanings = _meanings(kind, list(hints))
    return [
        Option(name, _in_words(hint), write_value(defaults[name], hint), meanings.get(name, ""))
        for name, hint in hints.items()
    ]


def _in_words(hint: Any) -> str:
    return ", ".join(get_args(hint)) if get_origin(hint) is Literal else WANTED[hint].removeprefix("a ")


def _meanings(kind: Any, names: list[str]) -> dict[str, str]:
    """What the docstrings of a class and its bases say after `name: `, or `name, other: ` for several options."""
    found: dict[str, str] = {}
    either = "|".join(map(re.escape, names))
    heads = re.compile(rf"(?:^|(?<=\. )|(?<=\n))[ ]*((?:{either})(?:, (?:{either}))*): ")
    for own in kind.__mro__:
        text = inspect.cleandoc(vars(own).get("__doc__") or "") if names else ""
        marks = list(heads.finditer(text))
        for number, mark in enumerate(marks, 1):
            end = marks[number].start() if number < len(marks) else len(text)
            body = re.split(r"\n\s*\n|(?:^|\s)Raises\b", text[mark.end() : end])[0]
            for name in mark[1].split(", "):
                found.setdefault(name, " ".join(body.split()))
    return found
