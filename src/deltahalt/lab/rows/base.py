"""Rows of measurements in JSONL files: each line is an object that names its kind."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from deltahalt.errors import InputError, OutputError, RowsWarning
from deltahalt.files import require_writable, writing
from deltahalt.lab.jsonl import COMPRESSED, is_whole, read_jsonl
from deltahalt.lab.rows.check import impossible

UNNAMED = "sweep"  # the kind of older rows, which do not name one


@dataclass(frozen=True)
class Row:
    """One measurement. kind: name of the row's type in files. signed: names of the fields that may be below zero."""

    kind: ClassVar[str]
    signed: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Row":
        """Return the row with the fields of a JSON object. Raises TypeError or KeyError for other fields."""
        return cls(**fields)


@dataclass(frozen=True)
class RanRow(Row):
    """A measurement with the hardware and software it ran on, from `deltahalt.lab.bench.machine.ran_on`."""

    dtype: str
    attention: str
    machine: str
    deltahalt: str
    transformers: str
    torch: str


AnyRow = TypeVar("AnyRow", bound=Row)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a file, each line with one write. The file is created if it does not exist.

    If the file ends in an incomplete line, which an interrupted write leaves, that line is first moved to another file.

    Raises:
        InputError: for a file that cannot be written or is compressed, and for a row that `read_rows` would refuse.
        OutputError: if writing fails, such as on a full disk; the rows before it are in the file.
    """
    _require_appendable(path)
    lines = [_line(row) for row in rows]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        with path.open("ab", buffering=0) as file:
            for line in lines:
                if file.write(line) < len(line):
                    raise OutputError(f"cannot write all of a row to {path}: is the disk full?")


def read_rows(path: Path, *kinds: type[AnyRow]) -> list[AnyRow]:
    """Return the rows of a file, which must be of `kinds`. An incomplete last line is left out, with a RowsWarning.

    Raises InputError for a file that is missing or damaged, and for a line that is not such a row.
    """
    lines = read_jsonl(path, hint=f"give rows that were measured ({_named(kinds, ', ')})", half=_warn)
    return [_row(fields, kinds, where) for where, fields in lines]


def rows_so_far(path: Path, *kinds: type[AnyRow]) -> list[AnyRow]:
    """Return the rows of a file, or none if there is no file yet. Raises as `read_rows` for other lines."""
    return read_rows(path, *kinds) if path.is_file() else []


def require_rows(path: Path, *kinds: type[Row]) -> None:
    """Raise InputError unless rows can be appended to the file: it does not exist, or has only rows of `kinds`."""
    _require_appendable(path)
    rows_so_far(path, *kinds)


def _require_appendable(path: Path) -> None:
    require_writable(path)
    if path.suffix == COMPRESSED:
        raise InputError(f"rows cannot be added to {path}, which is compressed: name a .jsonl file")


def _line(row: Row) -> bytes:
    """Return a row's line. Raises InputError for a row that `read_rows` would refuse."""
    if wrong := impossible(row):
        raise InputError(f"this {row.kind} row cannot be stored: {wrong}")
    return (json.dumps({"kind": row.kind, **asdict(row)}) + "\n").encode()


def _row(fields: dict[str, Any], kinds: Sequence[type[AnyRow]], where: str) -> AnyRow:
    """Return the row with these fields, of one of `kinds`. Raises InputError, which names `where`, for others."""
    named = fields.pop("kind", UNNAMED)
    kind: Any = next((kind for kind in kinds if kind.kind == named), None)
    row: Any = None
    wrong: str | None = f"kind {named!r} is not one that this command reads"
    if kind is not None:
        try:
            row = kind.of(fields)
        except (TypeError, KeyError):
            wrong = f"its fields are not those of kind {named!r}"
    if row is None or (wrong := impossible(row)):
        is_not = f"not a row of {_named(kinds, ' or ')} ({wrong})"
        raise InputError(f"{where}: {is_not}: give a file of such rows, or measure again")
    return cast(AnyRow, row)


def _named(kinds: Sequence[type[Row]], between: str) -> str:
    return between.join(kind.kind for kind in kinds)


def _warn(where: str) -> None:
    """Warn about an incomplete last line, which is not read."""
    message = f"{where}: this row is incomplete, since its write was interrupted, and is left out: measure it again"
    warnings.warn(message, RowsWarning, stacklevel=4)


def _end_last_line(path: Path) -> None:
    """Make a file end with a line feed. An incomplete row at its end moves to another file, with a RowsWarning."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        *lines, last = file.read().split(b"\n")
        if is_whole(last):
            file.write(b"\n")
            return
        aside = path.with_name(f"{path.name}.half")
        with aside.open("ab") as other:
            other.write(last + b"\n")
        file.truncate(sum(len(line) + 1 for line in lines))
    warnings.warn(f"an incomplete row at the end of {path} was moved to {aside}", RowsWarning, stacklevel=3)
