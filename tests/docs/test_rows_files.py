"""The committed rows are small, and every file of them can be read."""

from pathlib import Path

import pytest

from tools.rows_files import rows_file

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "results").iterdir())
TRACKED = ("assets", "docs", "recipes", "results", "src", "tests", "tools")
LARGEST_PLAIN, LARGEST_CLONE = 100_000, 25_000_000  # bytes


def test_large_files_are_compressed_and_a_clone_is_small() -> None:
    assert [file.name for file in FILES if file.suffix != ".gz" and file.stat().st_size > LARGEST_PLAIN] == []
    assert {"".join(file.suffixes[-2:]) for file in FILES if file.suffix == ".gz"} <= {".jsonl.gz"}
    files = [file for folder in TRACKED for file in (ROOT / folder).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if "__pycache__" not in file.parts) < LARGEST_CLONE


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_found_by_its_name(file: Path) -> None:
    assert rows_file(ROOT / "results", file.name.partition(".jsonl")[0]) == file
