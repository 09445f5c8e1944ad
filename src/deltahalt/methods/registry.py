"""The methods of all stages, by name: everything that `--policy` takes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltahalt.methods.base import Method
from deltahalt.methods.halting import Halting, method_of
from deltahalt.policies.base import AnyPolicy, Policy
from deltahalt.policies.discovery import found
from deltahalt.policies.text import (
    build,
    format_one,
    format_policy,
    known_policies,
    parse_policy,
    read,
    update,
    with_options,
)
from deltahalt.profile import check_profile
from deltahalt.profile_names import names_profile

AnyMethod = AnyPolicy | Method

if TYPE_CHECKING:
    METHODS: dict[str, type[Policy | Method]]


def known_methods() -> dict[str, type[Policy | Method]]:
    """All methods by name, policies first. Those of other packages are included."""
    return {**known_policies(), **found("deltahalt.methods", Method)}


def parse_method(text: str, **overrides: Any) -> Method:
    """Build a method from its name and options, `name:option=value,...`; stages of policies are joined by `+`.

    Args:
        text: Text such as `format_method` returns.
        overrides: Options, typed or as text, in place of those in the text.

    Returns:
        The method. A policy is wrapped as `Halting`.

    Raises:
        PolicyError: For an unknown name or option, or a value out of range.

    Example:
        >>> parse_method("d3:alpha=0.98").alpha
        0.98
    """
    stages = read(text)
    if len(stages) > 1:
        return Halting(policy=parse_policy(text, **overrides))
    (stage,) = update(stages, overrides)
    return method_of(build(stage, known_methods()))


def check_method(text: str, options: Mapping[str, Any] = {}) -> Method | None:
    """Check the text of a method before a model is loaded for it.

    options: as in `deltahalt.profile.resolve`. Returns the method; None for a profile, whose choice depends on the
    model. Raises PolicyError as `parse_method` does, and what `check_profile` raises.
    """
    if names_profile(text):
        check_profile(text, options)
        return None
    return parse_method(with_options(text, options))


def format_method(method: AnyMethod) -> str:
    """The canonical text of a policy or method, from which `parse_method` builds the same one.

    Example:
        >>> format_method(parse_method("d3: alpha=0.98, core=0.5"))
        'd3:alpha=0.98'
    """
    match method_of(method):
        case Halting(policy=policy):
            return format_policy(policy)
        case other:
            return format_one(other)


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        return known_methods()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
