"""What tests of the command share: arguments of their own on a wide terminal, and a document."""

import sys
from pathlib import Path

import pytest

from helpers.command import TEXT


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "200")  # so that no cell is wrapped


@pytest.fixture
def document(tmp_path: Path) -> str:
    """A file of `TEXT`."""
    path = tmp_path / "document.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)
