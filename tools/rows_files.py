"""Files of rows in results/: plain, or compressed where they are large."""

from pathlib import Path


def rows_file(folder: Path, name: str) -> Path:
    """The file of rows that is called `name`, compressed unless there is a plain one."""
    plain = folder / f"{name}.jsonl"
    return plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")
