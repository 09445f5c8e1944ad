"""The options of a policy or method, which are the fields of its dataclass: their types and permitted values."""

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from deltahalt.errors import PolicyError

LONGEST = 63  # most bits of a whole number, without its sign
WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    float | int: "a number",
    bool: "true or false",
    str: "text",
}


def options_of(kind: Any) -> dict[str, Any]:
    """The type of each option of a policy or method class, by name; empty for a class with `configurable = False`."""
    return _types(kind) if getattr(kind, "configurable", True) else {}


def check_types(method: Any) -> None:
    """Raise PolicyError if the value of an option is not of its field's type, or is a number that is not finite."""
    kind: Any = type(method)
    for name, hint in _types(kind).items():
        _check(name, getattr(method, name), hint)


def require_at_least(policy: Any, least: int, *names: str) -> None:
    """Raise PolicyError if one of these options of a policy or method is below `least`."""
    for name in names:
        if getattr(policy, name) < least:
            raise PolicyError(f"{name} is {getattr(policy, name)!r}; it must be {least} or more")


def require_odd(policy: Any, name: str) -> None:
    """Raise PolicyError unless this option of a policy or method is odd and positive."""
    value = getattr(policy, name)
    if value < 1 or value % 2 == 0:
        raise PolicyError(f"{name} is {value}; it must be an odd number, 1 or more")


@cache
def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {option.name: hints[option.name] for option in fields(kind)}


def _check(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise PolicyError(f"{name} is {value!r}; choose one of {', '.join(get_args(hint))}")
    if hint in (int, float, float | int):
        number = int if hint is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, number):
            raise PolicyError(f"{name} is {value!r}; it must be {WANTED[hint]}")
        if isinstance(value, int) and value.bit_length() > LONGEST:
            raise PolicyError(
                f"{name} is a number of {value.bit_length()} bits; it must fit into 64 bits: give at most 18 digits"
            )
        if not math.isfinite(value):
            raise PolicyError(f"{name} is {value!r}; it must be a finite number")
    if hint in (bool, str) and not isinstance(value, hint):
        raise PolicyError(f"{name} is {value!r}; it must be {WANTED[hint]}")


def read_value(owner: str, name: str, text: str, hint: Any) -> Any:
    """The value, of type `hint`, that `text` gives for option `name`. Raises PolicyError for text of another type."""
    text = text.strip()
    try:
        if hint is int:
            return int(text)
        if hint is float:
            return float(text)
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint == float | int:
            return int(text) if text.removeprefix("-").isdecimal() else float(text)
    except (ValueError, KeyError) as error:
        raise PolicyError(f"{owner} option {name} is {_shown(text)}; it must be {WANTED[hint]}") from error
    return text


def write_value(value: Any, hint: Any) -> str:
    """The text of an option's value, from which `read_value` gets the same value."""
    if hint is float:  # 1 and 1.0 are one value
        return repr(float(value)).removesuffix(".0")
    return repr(value) if isinstance(value, float) else str(value).lower() if hint is bool else str(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: a suggestion of the most similar of the `known` names; empty if none is similar."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
