"""ViTs that groups can be halted in, one a file. A new file that defines a Tower is found by itself."""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.vision.towers.base import Tower

# Why a model whose visual tokens can be halted in its decoder is refused here.
REFUSED = {
    "llava_onevision": "it resamples features behind its ViT, so a patch has no place of its own in the prompt",
}


@cache
def known_towers() -> dict[str, type[Tower]]:
    """Every kind of tower by the model types that have it."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    classes = {
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Tower)
    }
    return {model_type: tower for tower in classes for model_type in tower.model_types}


def tower_of(config: Any) -> Tower:
    """The tower of a vision-language model with this configuration.

    Raises UnsupportedError, naming the known ones, for another.
    """
    kind: Any = getattr(config, "model_type", None)
    tower = known_towers()[kind](config) if kind in known_towers() else None
    reason = tower.unsupported() if tower else REFUSED.get(kind, "its tower is not known")
    if tower is None or reason:
        known = ", ".join(sorted(known_towers()))
        raise UnsupportedError(f"ViT-stage methods do not work in {kind!r}: {reason}; known: {known}")
    return tower
