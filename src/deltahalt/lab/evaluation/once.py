"""Rows that are measured once: those that a file has already are taken from it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from deltahalt.errors import PolicyError
from deltahalt.lab.rows.base import append_rows
from deltahalt.methods.registry import AnyMethod, format_method, parse_method

AnyRow = TypeVar("AnyRow", bound=Any)  # a Row with a field `policy`
Measure = Callable[[Mapping[str, AnyMethod]], Iterator[AnyRow]]  # methods by their texts -> their rows, in order


def measured_once(
    samples: Iterable[tuple[str, Measure[AnyRow]]],
    methods: Mapping[str, AnyMethod],
    done: dict[tuple[str, str], AnyRow],
    rows: Path | None,
    tick: Callable[[], None],
) -> Iterator[AnyRow]:
    """Yield the row of every method on every sample, each before it is written, so that a full disk does not lose it.

    samples: for each sample its digest, and what measures methods on it. methods: by their texts in the rows; a row of
    the same method under another text counts. done: known rows, by digest and canonical text; new ones are added. rows:
    the file that new rows are appended to, if any. tick: called after each sample.
    """
    names = {text: format_method(method) for text, method in methods.items()}
    first: dict[str, str] = {}  # by canonical text, the first text that a method has
    for text, name in names.items():
        first.setdefault(name, text)
    for sample, measure in samples:
        missing = {text: methods[text] for name, text in first.items() if (sample, name) not in done}
        measured = measure(missing) if missing else iter(())
        for text, name in names.items():
            if (sample, name) in done:
                yield replace(done[sample, name], policy=text)
                continue
            row = done[sample, name] = next(measured)
            yield row
            if rows is not None:
                append_rows(rows, [row])
        tick()


@cache
def canonical(text: str) -> str:
    """Return the canonical text of a method. The text of a method that this version does not have stays as it is."""
    try:
        return format_method(parse_method(text))
    except PolicyError:
        return text
