"""Files to write, refused before there is anything to write."""

import os
from pathlib import Path

from deltahalt.errors import InputError


def require_writable(path: Path) -> None:
    """Raise InputError where a file cannot be written or added to; makes none."""
    existing = next(place for place in (path, *path.parents) if os.access(place, os.F_OK))
    if existing.is_dir() == (existing == path) or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write to {path}: give a file that can be written")
