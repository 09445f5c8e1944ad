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
PARTS = ("page.html", "page.css", "page.js")


def render(record: PromptRecord) -> str:
    """The page: style, script and record inside it, and nothing is ever loaded from elsewhere."""
    parts = {name: files("deltahalt.lab.viewer").joinpath(name).read_text(encoding="utf-8") for name in PARTS}
    data = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Template(parts["page.html"]).substitute(
        title=escape(f"{record.model}: which tokens halt"),
        style=parts["page.css"],
        script=parts["page.js"],
        record=data.replace("<", "\\u003c"),  # so that no text of the prompt can end the script element
    )


def is_page(file: Path) -> bool:
    """Whether a file is a page that `render` wrote."""
    return MARK in head(file)
