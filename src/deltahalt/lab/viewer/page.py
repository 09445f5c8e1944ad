"""The record of a prompt as one HTML file that needs nothing else."""

import json
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from deltahalt.files import head
from deltahalt.lab.viewer.record import PromptRecord

MARK = b'<meta name="generator" content="deltahalt view">'
STYLES = ("page.css", "text.css")
SCRIPTS = (  # each may use what the ones before it define
    "base.js",
    "record.js",
    "state.js",
    "answers.js",
    "layers.js",
    "cards.js",
    "difference.js",
    "text.js",
    "overview.js",
    "details.js",
    "moving.js",
    "find.js",
    "main.js",
)


def render(record: PromptRecord) -> str:
    """The page: style, script and record inside it, and nothing is ever loaded from elsewhere."""
    data = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Template(_part("page.html")).substitute(
        title=escape(f"{record.model}: which tokens halt"),
        style="".join(map(_part, STYLES)),
        script="".join(map(_part, SCRIPTS)),
        record=data.replace("<", "\\u003c"),  # so that no text of the prompt can end the script element
    )


def is_page(file: Path) -> bool:
    """Whether a file is a page that `render` wrote."""
    return MARK in head(file)


def _part(name: str) -> str:
    return files("deltahalt.lab.viewer").joinpath("parts", name).read_text(encoding="utf-8")
