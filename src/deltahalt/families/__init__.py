"""Model families, one a file. A new file here that defines a Family with `model_types` is found by itself."""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.families.base import Family


@cache
def known_families() -> dict[str, Family]:
    """Every family by the model types that it serves."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    classes = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Family)
    }
    return {model_type: family() for family in classes for model_type in family.model_types}


def family_of(config: Any) -> Family:
    """The family of a decoder with this configuration.

    Raises UnsupportedError, naming the known ones, for an unknown family or a variant that cannot be halted.
    """
    family = known_families().get(config.model_type)
    if family is None:
        known = ", ".join(sorted(known_families()))
        raise UnsupportedError(f"model type {config.model_type!r} is not a known family; known: {known}")
    reason = family.unsupported(config)
    if reason:
        raise UnsupportedError(reason)
    return family
