"""Rows of measurements in JSONL files: one object a line, which names its kind."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from deltahalt.errors import InputError
from deltahalt.files import require_writable

UNNAMED = "sweep"  # the kind of rows that were written before kinds were


@dataclass(frozen=True)
class Row:
    """One measurement. kind: what its lines are told from others by."""

    kind: ClassVar[str]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Row":
        """The row with these fields of a JSON object. Raises TypeError or KeyError for others."""
        return cls(**fields)


@dataclass(frozen=True)
class RanRow(Row):
    """A measurement with what it ran on, as `deltahalt.lab.bench.machine.ran_on` says it."""

    dtype: str
    attention: str
    machine: str
    deltahalt: str
    transformers: str
    torch: str


AnyRow = TypeVar("AnyRow", bound=Row)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, which is made if there is none. Raises InputError as `require_writable` does."""
    require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"kind": row.kind, **asdict(row)}) + "\n" for row in rows)


def read_rows(path: Path, *kinds: type[AnyRow]) -> list[AnyRow]:
    """The rows of a file, each of one of `kinds`.

    Raises InputError for a file that is missing, and for a line that is no such row.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: give rows that were measured ({', '.join(k.kind for k in kinds)})")
    rows: list[AnyRow] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = _row(line, kinds)
        except ValueError as error:
            found = f"{path}, line {number}: no row of {' or '.join(kind.kind for kind in kinds)} ({error})"
            raise InputError(f"{found}: give a file of such rows, or measure anew") from error
        rows.append(row)
    return rows


def _row(line: str, kinds: Sequence[type[AnyRow]]) -> AnyRow:
    """The row of a line, of one of `kinds`. Raises ValueError that says what is wrong."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise InputError("it is no JSON object")
    named = fields.pop("kind", UNNAMED)
    kind = next((kind for kind in kinds if kind.kind == named), None)
    if kind is None:
        raise InputError(f"kind {named!r} is not one that this command reads")
    try:
        row: Any = kind.of(fields)
    except (TypeError, KeyError) as error:
        raise InputError(f"its fields are not those of kind {named!r}") from error
    return cast(AnyRow, row)


def rows_so_far(path: Path, *kinds: type[AnyRow]) -> list[AnyRow]:
    """The rows of a file that is still written; none if there is no file yet. Raises as `read_rows` for other lines."""
    return read_rows(path, *kinds) if path.exists() else []
