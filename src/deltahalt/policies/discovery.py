"""The search for policies and methods: in every file of a package, and in the entry points of other packages."""

import pkgutil
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from deltahalt.profile_names import names_profile

GROUP = "deltahalt.policies"  # group of the entry points by which other packages add policies and methods

# The commands and functions that take what each package defines.
TAKEN_BY = {
    "deltahalt.policies": "a policy of the decoder: give it to --policy, or to halting(model, ...)",
    "deltahalt.methods": (
        "a method that halts no tokens in decoder layers: --policy of run, demo, bench, sweep and eval takes it, "
        "and applying(model, parse_method(...))"
    ),
    "deltahalt.vision.policies": (
        "a policy of the ViT: give it to look --vision-policy, to vision-sweep or view --policies, or to "
        "halting(model, policy, vision=...)"
    ),
}


def found(package: str, kind: type[Any]) -> dict[str, type[Any]]:
    """The classes, by `name`, that the files of a package define, and the classes of `kind` that entry points add."""
    own = own_classes(package)
    added = {name: other for name, other in added_classes().items() if issubclass(other, kind)}
    for name in sorted(own.keys() & added.keys()):
        warnings.warn(
            f"the entry point {name!r} of {GROUP} is ignored, since deltahalt has a {name!r}: give it another name",
            stacklevel=2,
        )
    return dict(sorted((added | own).items()))


@cache
def own_classes(package: str) -> dict[str, type[Any]]:
    """The classes that the files of `package` define with a `name` and a `summary` of their own, by name."""
    path = import_module(package).__path__
    modules = [import_module(f"{package}.{file.name}") for file in pkgutil.iter_modules(path)]
    classes: list[Any] = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    return {item.name: item for item in classes if _is_complete(item) and item.__module__.startswith(f"{package}.")}


def class_called(package: str, name: str) -> type[Any]:
    """The class `name` that a file of `package` defines. Raises AttributeError for any other name.

    It does not look at entry points, so the module of an entry point can import our classes while it is loaded.
    """
    for kind in own_classes(package).values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


@cache
def added_classes() -> dict[str, type[Any]]:
    """The classes, by `name`, of the entry points of other packages. Warns of one that cannot be loaded."""
    classes: dict[str, type[Any]] = {}
    for point in entry_points(group=GROUP):
        try:
            item: Any = point.load()
        except Exception as error:  # noqa: BLE001 (another package's code may raise anything)
            warnings.warn(f"the entry point {point.name!r} of {GROUP} cannot be loaded: {error}", stacklevel=2)
            continue
        if not (isinstance(item, type) and _is_complete(item) and vars(item)["name"] == point.name):
            warnings.warn(
                f"the entry point {point.name!r} of {GROUP} is ignored: it must be a class whose name is "
                f"{point.name!r}, with a summary",
                stacklevel=2,
            )
            continue
        classes[point.name] = item
    return classes


def elsewhere(name: str) -> str | None:
    """A sentence that says which commands take the policy or method `name`; None if deltahalt does not have it."""
    if names_profile(name):
        return f"{name} is a profile, which is for one model: name a policy, or use a command that loads a model"
    return next((f"{name} is {taken}" for package, taken in TAKEN_BY.items() if name in own_classes(package)), None)


def _is_complete(item: Any) -> bool:
    """Whether a class is a policy or method that users can name, and not a base class."""
    return bool(vars(item).get("name")) and bool(vars(item).get("summary"))
