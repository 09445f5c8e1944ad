"""One progress bar in the place of those that transformers shows while a model is loaded."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

# Modules of transformers that count tensors, and what each does with them.
COUNTED = {"modeling_gguf_pytorch_utils": "unpacking", "core_model_loading": "loading"}


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
    """What stands in for tqdm: it passes items on and counts them."""

    def count(items: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
        items = list(items)
        task = progress.add_task(what, total=len(items))
        for item in items:
            yield item
            progress.advance(task)
        progress.remove_task(task)

    return count
