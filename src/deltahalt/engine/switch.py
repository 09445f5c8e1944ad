"""Options that are on, off, or chosen by the engine."""

from typing import Any

from deltahalt.errors import InputError


def check_switch(name: str, given: Any) -> bool | None:
    """Return `given`: on (True), off (False) or the engine's choice (None). Raises InputError for anything else."""
    if given is not None and not isinstance(given, bool):
        raise InputError(f"{name} is {given!r}; give True, False or None")
    return given
