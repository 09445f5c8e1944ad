"""Progress bars: the bytes of a download, and the tensors of a model that is being loaded."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

GLANCE = 0.2  # seconds between two updates of the download bar

# Modules of transformers that show a progress bar over tensors, and what each does with them.
COUNTED = {"modeling_gguf_pytorch_utils": "unpacking", "core_model_loading": "loading"}


@contextmanager
def download_bar(console: Console, folder: Path, total: int) -> Iterator[None]:
    """Show how many of about `total` bytes are in `folder` while the `with` block downloads something into it."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    done = Event()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("downloading with pip", total=total)

        def watch() -> None:
            while not done.wait(GLANCE):
                progress.update(task, completed=min(total, bytes_in(folder)))

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def bytes_in(folder: Path) -> int:
    """Return the total size of all files under a folder; files may vanish while it runs."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.lstat().st_size if file.is_file() else 0
    return total


@contextmanager
def loading_bars(name: str) -> Iterator[None]:
    """Show how many of a model's tensors are unpacked and loaded, on stderr, while the `with` block loads it."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, ExitStack() as undo:
        for module, what in COUNTED.items():
            try:
                host = import_module(f"transformers.{module}")
            except ImportError:  # another version of transformers
                continue
            if hasattr(host, "tqdm"):
                undo.callback(setattr, host, "tqdm", host.tqdm)
                host.tqdm = _counting(progress, f"{what} {name}")  # type: ignore[attr-defined]
        yield


def _counting(progress: Progress, what: str) -> Callable[..., Iterator[Any]]:
    """Return a function that replaces tqdm: it yields the items and shows their number on `progress`."""

    def count(items: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
        items = list(items)
        task = progress.add_task(what, total=len(items))
        for item in items:
            yield item
            progress.advance(task)
        progress.remove_task(task)

    return count
