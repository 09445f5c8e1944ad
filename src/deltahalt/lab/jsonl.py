"""JSON lines: one object per line, in a plain file or one that is compressed by gzip."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from deltahalt.errors import InputError
from deltahalt.files import is_file

Kinds = type | tuple[type, ...]

COMPRESSED = ".gz"  # how the name of a compressed file ends
SPOKEN = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def read_jsonl(
    path: Path,
    *,
    hint: str = "give a file with a JSON object on each line",
    fields: Mapping[str, Kinds] = {},
    half: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place ("FILE, line N") and the object of each line that is not blank.

    Only a line feed ends a line: U+2028, U+2029 and U+0085 may be part of a text.

    Args:
        path: the file; a name that ends in .gz is read decompressed.
        hint: what to do instead, which every error ends with.
        fields: fields that each object must have, and their types.
        half: called with the place of the last line if it is an incomplete object, which an interrupted write leaves;
            if None, such a line is an error like any other.

    Raises:
        InputError: for a file that is missing, damaged or binary, and for a line that is not such an object.
    """
    if not is_file(path):
        raise InputError(f"there is no file {path}: {hint}")
    try:
        with gzip.open(path) if path.suffix == COMPRESSED else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    read = _read_line(line)
                except InputError as error:
                    if half is not None and _is_half(line, error):
                        half(where)
                        return
                    raise InputError(f"{where}: {error}: {hint}") from error
                if wrong := _wrong_field(read, fields):
                    raise InputError(f"{where}: {wrong}: {hint}")
                yield where, read
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}): give a file that is whole") from error


def is_whole(line: bytes) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        _read_line(line)
    except InputError:
        return False
    return True


def spoken(value: Any) -> str:
    """Return the kind of a JSON value in words."""
    return SPOKEN.get(type(value), type(value).__name__)


def is_text(value: str) -> bool:
    """Whether a string is text that can be written as UTF-8: it has no lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_line(line: bytes) -> dict[str, Any]:
    """Return the object of a line. Raises InputError, which says what is wrong."""
    if b"\0" in line:
        raise InputError("it is binary, not text")
    try:
        text = line.decode("utf-8-sig")
        read = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise InputError("its JSON is nested too deep") from error
    except ValueError as error:
        raise InputError(f"it is not JSON ({error})") from error
    if not isinstance(read, dict):
        raise InputError(f"it is not a JSON object, but {spoken(read)}")
    if "\\u" in text and not is_text(json.dumps(read, ensure_ascii=False)):
        raise InputError("it has a lone surrogate (\\ud800 to \\udfff), which is not a character")
    return read


def _is_half(line: bytes, error: InputError) -> bool:
    """Whether a line that cannot be read begins as an object does, and was cut before its line feed."""
    cut = line.startswith(b"{") and not line.endswith(b"\n")
    return cut and isinstance(error.__cause__, json.JSONDecodeError)


def _wrong_field(read: dict[str, Any], fields: Mapping[str, Kinds]) -> str | None:
    """Return what is wrong with the fields of an object; None if nothing is."""
    if missing := [name for name in fields if name not in read]:
        return f"it has no {', '.join(missing)}"
    for name, kinds in fields.items():
        if not isinstance(read[name], kinds):
            wanted = kinds if isinstance(kinds, tuple) else (kinds,)
            return f"{name} is {spoken(read[name])}, not {' or '.join(SPOKEN[kind] for kind in wanted)}"
    return None
