"""Texts that are at hand: help texts and source files of Python and its packages, and a folder of the user's."""

import ast
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import metadata
from itertools import dropwhile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, TypeVar

from deltahalt.answering.documents import read_document
from deltahalt.errors import InputError
from deltahalt.files import is_file
from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.jsonl import read_jsonl

Item = TypeVar("Item")
# Packages that deltahalt needs in any case, so that they are there wherever it runs.
PACKAGES = ("json", "asyncio", "email", "http", "logging", "unittest", "xml", "multiprocessing", "accelerate", "rich")
READMES = ("accelerate", "huggingface_hub", "numpy", "rich", "tokenizers", "torch", "tqdm", "transformers", "typer")
LONG_DOCSTRING = 300  # characters
SMALLEST, LARGEST = 6_000, 200_000  # bytes of a source file


def help_texts(draw: Draw) -> Iterator[str]:
    """Paragraphs of Python's own help texts, topic by topic in a drawn order, again and again."""
    yield from _in_rounds(draw, draw.own(sorted(topics)), topics.__getitem__)


def docstrings(draw: Draw) -> Iterator[str]:
    """Paragraphs of the longer docstrings of source files, file after file, again and again."""
    while True:
        for text in _docstrings(draw.one(source_files())):
            yield from _paragraphs(text)


@cache
def _docstrings(file: Path) -> tuple[str, ...]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    documented = (node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    texts = (ast.get_docstring(node) for node in documented)
    return tuple(text for text in texts if text and len(text) > LONG_DOCSTRING)


def readmes(draw: Draw) -> Iterator[str]:
    """Paragraphs of what packages that deltahalt needs say about themselves, again and again."""
    yield from _in_rounds(draw, draw.own(READMES), lambda package: str(metadata(package).json["description"]))


def source_file(draw: Draw) -> str:
    """A Python source file of the standard library or of a package that deltahalt needs, without licence on top."""
    lines = draw.one(source_files()).read_text(encoding="utf-8").splitlines()
    return "\n".join(dropwhile(lambda line: not line.strip() or line.startswith("#"), lines))


def source_code(draw: Draw) -> Iterator[str]:
    """Pieces of source files, file after file, again and again."""
    while True:
        yield from _paragraphs(source_file(draw))


@cache
def source_files() -> tuple[Path, ...]:
    """Source files in alphabetical order of package and path, none too short or too long."""
    folders = [_folder(package) for package in PACKAGES]
    files = [
        *Path(json.__file__).parents[1].glob("*.py"),
        *(file for folder in folders for file in folder.rglob("*.py")),
    ]
    fitting = {file for file in files if SMALLEST <= file.stat().st_size <= LARGEST and "test" not in file.name}
    return tuple(sorted(fitting, key=lambda file: (file.parent.name, file.name)))


def essays(draw: Draw, folder: Path) -> Iterator[str]:
    """Paragraphs of the user's texts, text by text in a drawn order, again and again. Raises as `folder_texts`."""
    yield from _in_rounds(draw, draw.own(folder_texts(folder)), str)


@cache
def folder_texts(folder: Path) -> tuple[str, ...]:
    """The texts in a folder: essays/*.txt, or *.txt. Raises InputError where there are fewer than two."""
    files = sorted([*folder.glob("essays/*.txt"), *folder.glob("*.txt")])
    long = [file for file in files if file.stat().st_size > 1_000]
    texts = tuple(text for file in long if len(text := read_document(str(file)).strip()) > 1_000)
    if len(texts) < 2:
        raise InputError(
            f"there are {len(texts)} texts in {folder}: put two or more files of 1,000 characters and more into "
            "essays/*.txt there, or give no folder"
        )
    return texts


@cache
def longbench_rows(file: Path) -> tuple[dict[str, Any], ...]:
    """The rows of one of LongBench's files; none if there is no file."""
    if not is_file(file):
        return ()
    return tuple(row for _, row in read_jsonl(file, fields={"context": str, "answers": list}))


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _in_rounds(draw: Draw, items: Sequence[Item], read: Callable[[Item], str]) -> Iterator[str]:
    """Paragraphs of what `read` gives for each item, all items in a drawn order, again and again."""
    while True:
        for item in draw.shuffled(items):
            yield from _paragraphs(read(item))


def _paragraphs(text: str) -> Iterator[str]:
    """The text in pieces that end at blank lines."""
    for piece in text.split("\n\n"):
        if piece.strip():
            yield piece.strip("\n").rstrip()
