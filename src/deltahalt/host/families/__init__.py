"""Model families, one per file. A family with `model_types` in a new file is found automatically."""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.host.families.base import Family
from deltahalt.host.families.vision import VisionFamily


@cache
def known_families(kind: Any) -> dict[str, Any]:
    """Return every family of decoders, or of vision-language models, by its model types."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    classes: set[Any] = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, kind)
    }
    return {model_type: family() for family in classes for model_type in family.model_types}


def family_of(config: Any) -> Family:
    """Return the family of a decoder with this configuration.

    Raises UnsupportedError, which names the known families, for an unknown family or a variant that cannot be halted.
    """
    family: Family = _find(Family, config)
    reason = family.unsupported(config)
    if reason:
        raise UnsupportedError(reason)
    return family


def vision_family_of(config: Any) -> VisionFamily:
    """Return the family of a vision-language model, without its decoder's. Raises UnsupportedError if unknown."""
    family: VisionFamily = _find(VisionFamily, config)
    return family


def _find(kind: Any, config: Any) -> Any:
    families = known_families(kind)
    if config.model_type not in families:
        known = ", ".join(sorted(families))
        raise UnsupportedError(f"model type {config.model_type!r} is not a known family; known: {known}")
    return families[config.model_type]
