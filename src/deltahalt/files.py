"""Output files: they are checked before there is anything to write, and never left half written."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deltahalt.errors import InputError, OutputError

HEAD = 4096  # number of first bytes that show which command wrote a file


def require_writable(path: Path) -> None:
    """Raise InputError if a file cannot be written or appended to. The check does not create the file."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # the name is too long, or has a zero byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write to {str(path)[:80]!r} ({reason}): give the name of a file") from error
    existing = next(place for place in (path, *path.parents) if os.access(place, os.F_OK))
    if existing.is_dir() == (existing == path):
        kind = "a folder" if existing.is_dir() else "a file"
        raise InputError(f"cannot write to {path}, since {existing} is {kind}: give another path")
    if not os.access(existing, os.W_OK):
        raise InputError(f"cannot write to {path}, since {existing} may not be written to: give another path")


def is_file(path: Path) -> bool:
    """Return whether a file exists; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; False for a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def require_output(
    path: Path, wrote: Callable[[Path], bool], *, inputs: Iterable[Path | str | None] = (), force: bool | None = False
) -> None:
    """Raise InputError if replacing `path` would fail, or would lose a file that this command did not write.

    Args:
        path: the file to write.
        wrote: decides by the content of an existing file whether the same command wrote it.
        inputs: the files that the command reads; names that are not files are ignored.
        force: whether to overwrite any file but the inputs; None if the command has no such option.
    """
    require_writable(path)
    require_apart(path, inputs)
    if not path.is_file():
        return
    if not os.access(path.resolve().parent, os.W_OK):
        raise InputError(f"cannot write to the folder of {path}: give a file in another folder")
    if not force and path.stat().st_size and not wrote(path):
        instead = "name another file" if force is None else "name another file, or give --force"
        raise InputError(f"{path} exists and was not written by this command, so it is not overwritten: {instead}")


def require_apart(path: Path, others: Iterable[Path | str | None]) -> None:
    """Raise InputError if one of `others` is the file `path`, also through a link or another spelling of the name."""
    for other in others:
        if other is not None and _same(path, Path(other).expanduser()):
            raise InputError(f"{path} is the file {other}, which this command uses: name another file to write")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other) if one.exists() and other.exists() else one.resolve() == other.resolve()
    except (OSError, ValueError):  # not a valid file name
        return False


def head(path: Path) -> bytes:
    """Return the first `HEAD` bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content through a temporary file in the same folder; on failure, the old content stays.

    Anything but an ordinary file, such as /dev/stdout, is written to directly. Raises OutputError on failure.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()  # a link stays one
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(content)
            if target.exists():
                shutil.copymode(target, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the `with` block into an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
