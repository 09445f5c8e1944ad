"""ViTs in which groups can be halted, one kind per file. A Tower in a new file is found automatically."""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.vision.towers.base import Tower

# Models whose visual tokens can be halted in the decoder but not in the ViT, and why.
REFUSED = {
    "llava_onevision": "it resamples features after its ViT, so a patch has no position of its own in the prompt",
}


@cache
def known_towers() -> dict[str, type[Tower]]:
    """Return every kind of tower by the model types that have it."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    classes = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Tower)
    }
    return {model_type: tower for tower in classes for model_type in tower.model_types}


def tower_of(config: Any) -> Tower:
    """Return the tower of a vision-language model with this configuration.

    Raises UnsupportedError, which names the known model types, if groups cannot be halted in its tower.
    """
    kind: Any = getattr(config, "model_type", None)
    tower = known_towers()[kind](config) if kind in known_towers() else None
    reason = tower.unsupported() if tower else REFUSED.get(kind, "its tower is not known")
    if tower is None or reason:
        known = ", ".join(sorted(known_towers()))
        raise UnsupportedError(f"ViT-stage policies do not work in a {kind!r} model: {reason}; known: {known}")
    return tower
