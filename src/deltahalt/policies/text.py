"""The options of a method, which is a dataclass: checked, and read from text such as `dash:start=11,chunk=8`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from deltahalt.errors import PolicyError

Method = TypeVar("Method")


def check_types(method: Any) -> None:
    """Raise PolicyError if an option holds another type than its field says, or none of a Literal's words."""
    for option in fields(method):
        value, whole = getattr(method, option.name), option.type is int
        if get_origin(option.type) is Literal and value not in get_args(option.type):
            choices = ", ".join(get_args(option.type))
            raise PolicyError(f"{option.name} is {value!r}; choose one of {choices}")
        if (whole or option.type in (float, float | int)) and (
            isinstance(value, bool) or not isinstance(value, int if whole else (int, float))
        ):
            raise PolicyError(f"{option.name} is {value!r}; it must be a {'whole ' if whole else ''}number")


def read_method(text: str, methods: Mapping[str, type[Method]], overrides: Mapping[str, Any]) -> Method:
    """Build one of `methods` from its name and options, `name:option=value,...`.

    overrides: options already typed. Raises PolicyError for an unknown name or option.
    """
    name, _, options = text.strip().partition(":")
    if name not in methods:
        raise PolicyError(f"there is no policy {name!r}; choose one of {', '.join(methods)}")
    method = methods[name]
    settings: dict[str, Any] = {}
    for key, value in (_read_option(name, method, option) for option in options.split(",") if option):
        if key in settings:
            raise PolicyError(f"{name} is given {key} twice")
        settings[key] = value
    for key in overrides:
        _refuse_unknown(name, method, key)
    return method(**settings | dict(overrides))


def with_options(policy: str, options: Mapping[str, Any]) -> str:
    """The policy with the same options for each of its stages, as text for `parse_policy`."""
    settings = ",".join(f"{name}={value}" for name, value in options.items())
    stages = policy.split("+") if settings else ()
    return "+".join(f"{stage}{',' if ':' in stage else ':'}{settings}" for stage in stages) or policy


def _read_option(name: str, method: type[Any], text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    key = key.strip().replace("-", "_")
    _refuse_unknown(name, method, key)
    hint = get_type_hints(method)[key]
    try:
        if hint is int:
            return key, int(value)
        if hint is float:
            return key, float(value)
        if hint is bool:
            return key, {"true": True, "false": False}[value.strip().lower()]
        if hint == float | int:
            return key, _number(value)
    except (ValueError, KeyError) as error:
        wanted = {int: "a whole number", bool: "true or false"}.get(hint, "a number")
        raise PolicyError(f"{name} option {key} is {value!r}; it must be {wanted}") from error
    return key, value.strip()


def _number(text: str) -> float | int:
    """An integer where one is written, such as 7 or -2; else a float."""
    return int(text) if text.strip().removeprefix("-").isdecimal() else float(text)


def _refuse_unknown(name: str, method: type[Any], key: str) -> None:
    names = [field.name for field in fields(method)]
    if key not in names:
        raise PolicyError(f"{name} has no option {key!r}; it has {', '.join(names)}")
