"""The record of a prompt as one HTML file that needs nothing else."""

import json
from dataclasses import asdict
from html import escape
from importlib.resources import files
from string import Template

from deltahalt.lab.viewer.record import PromptRecord

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
