"""Check that the fields of a row are possible: of the declared types, finite, and not below zero."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from deltahalt.lab.jsonl import SPOKEN, is_text, spoken

SCALARS = (str, float, int, bool, NoneType)


def impossible(row: Any) -> str | None:
    """Return what is wrong with the first impossible field of a row, with the field's name; None if all are possible.

    Numbers must be 0 or more, except in the fields that the row's type names in `signed`.
    """
    kind: Any = type(row)
    for name, hint in _declared(kind):
        if wrong := _wrong(name, getattr(row, name), hint, name in row.signed):
            return wrong
    return None


@cache
def _declared(kind: Any) -> list[tuple[str, Any]]:
    """Return the names and types of a dataclass's fields."""
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in fields(kind)]


def _wrong(name: str, value: Any, hint: Any, signed: bool) -> str | None:
    """Return what is wrong with a value of the declared type `hint`; None if nothing is."""
    if hint in SCALARS:
        return _wrong_scalar(name, value, hint, signed)
    kind: Any = get_origin(hint) or hint
    inner = get_args(hint)
    if kind in (Union, UnionType):
        found = [_wrong(name, value, one, signed) for one in inner]
        return None if None in found else found[0]
    if is_dataclass(kind):
        parts = ((f"{name}.{part}", getattr(value, part), one) for part, one in _declared(cast(Any, kind)))
    elif kind in (list, tuple):
        if not isinstance(value, list | tuple):
            return f"{name} is {spoken(value)}, not a list"
        parts = ((f"{name}[{place}]", item, inner[0]) for place, item in enumerate(value))
    elif isinstance(value, Mapping):
        parts = ((f"{name}[{key!r}]", item, inner[1]) for key, item in value.items())
    else:
        return f"{name} is {spoken(value)}, not an object"
    return next((wrong for part in parts if (wrong := _wrong(*part, signed))), None)


def _wrong_scalar(name: str, value: Any, kind: Any, signed: bool) -> str | None:
    """Do the same for a text, a number, a boolean or None."""
    taken: Any = (int, float) if kind is float else kind
    if not isinstance(value, taken) or (isinstance(value, bool) and kind is not bool):
        return f"{name} is {spoken(value)}, not {SPOKEN[kind]}"
    if isinstance(value, str):
        return None if is_text(value) else f"{name} is {value!r}, with a lone surrogate, which is not a character"
    if kind in (int, float):
        if not _finite(value):
            return f"{name} is not a finite number"
        if value < 0 and not signed:
            return f"{name} is {value}, below 0"
    return None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False
