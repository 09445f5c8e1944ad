"""Policies as text: the functions that parse, format and override them.

Examples are `dash:start=11,pruning_ratio=0.5`, and of two stages `key-norm:start=0.15+window-attention:start=0.5`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from deltahalt.errors import PolicyError
from deltahalt.policies.base import AnyPolicy, Policy, Progressive
from deltahalt.policies.discovery import elsewhere, found
from deltahalt.policies.options import did_you_mean, options_of, read_value, write_value

PACKAGE = "deltahalt.policies"
Kind = TypeVar("Kind")
# Options that come first in text, in this order; the others follow in the order of their class.
FIRST = ("start", "pruning_ratio", "keep", "boundary", "heads", "chunk", "shortest", "keep_first", "keep_last")
OF_ONE_STAGE = ("start", "pruning_ratio", "keep")  # options that several stages cannot share
INSTEAD = {"keep": "pruning_ratio", "pruning_ratio": "keep"}  # an option, and that which it replaces


@dataclass(frozen=True)
class Written:
    """One stage of a policy's text: its name and options as text, which are not checked yet."""

    name: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


def read(text: str) -> tuple[Written, ...]:
    """The stages of a text, without a check that their policies exist. Raises PolicyError for a repeated option."""
    return tuple(map(_read_stage, text.split("+")))


def write(stages: Iterable[Written]) -> str:
    """The text of these stages, from which `read` gets the same stages."""
    return "+".join(map(str, stages))


def is_dense(text: str) -> bool:
    """Whether a text names the full model."""
    return [stage.name for stage in read(text)] == ["dense"]


def known_policies() -> dict[str, type[Policy]]:
    """All policies, by name. Those of other packages are included."""
    return found(PACKAGE, Policy)


def parse_policy(text: str, **overrides: Any) -> AnyPolicy:
    """Build a policy from its text, `name:option=value,...`, with stages joined by `+`.

    Args:
        text: Text such as `format_policy` returns. `keep-first` is read as `keep_first`. Options that the text does
            not name have their defaults.
        overrides: Options of every stage, typed or as text, in place of those in the text.

    Returns:
        A `Policy`, or a `Progressive` if there are several stages.

    Raises:
        PolicyError: For an unknown name or option, a value out of range, an option that is given twice, or a start or
            pruning_ratio in `overrides` of several stages.

    Example:
        >>> policy = parse_policy("dash:start=11,pruning_ratio=0.5")
        >>> policy == Dash(start=11, pruning_ratio=0.5)
        True
        >>> policy.kept(4096)
        2096
    """
    stages = update(read(text), overrides)
    return joined([build(stage, known_policies()) for stage in stages])


def format_policy(policy: AnyPolicy) -> str:
    """The canonical text of a policy: its name and the options that differ from their defaults.

    Args:
        policy: A `Policy`, or a `Progressive`, whose stages are joined by `+`.

    Returns:
        Text from which `parse_policy` builds the same policy.

    Example:
        >>> format_policy(parse_policy("dash:keep_last=32, start=11"))
        'dash:start=11'
    """
    parts = policy.stages if isinstance(policy, Progressive) else (policy,)
    return "+".join(map(format_one, parts))


def override(policy: AnyPolicy, **options: Any) -> AnyPolicy:
    """A copy of the policy with these options on each of its stages.

    Args:
        policy: A `Policy` or `Progressive`. It does not change.
        options: Options by name, typed or as text.

    Returns:
        The new policy; the same one if there are no options.

    Raises:
        PolicyError: For an unknown option, a value out of range, or a start or pruning_ratio for several stages.

    Example:
        >>> format_policy(override(parse_policy("dash:start=11"), pruning_ratio=0.5))
        'dash:start=11,pruning_ratio=0.5'
    """
    if not options:
        return policy
    parts = policy.stages if isinstance(policy, Progressive) else (policy,)
    _refuse_shared(options, format_policy(policy), len(parts))
    return joined([replace_options(part, options) for part in parts])


def with_options(text: str, options: Mapping[str, Any]) -> str:
    """The text of a policy or method with `options` on each stage. Raises PolicyError if the text has one of them."""
    for stage in read(text) if options else ():
        if both := [option for option in options if option in stage.options]:
            raise PolicyError(
                f"{both[0]} is given twice: as {stage.options[both[0]]} in {text!r}, and as {options[both[0]]} by an "
                "option beside it; leave one out"
            )
        if other := [option for option in options if INSTEAD.get(option) in stage.options]:
            raise PolicyError(
                f"{other[0]} is {options[other[0]]}, but {text!r} gives {INSTEAD[other[0]]}: leave one of them out"
            )
    return write(update(read(text), options)) if options else text


def require_policy(given: Any) -> AnyPolicy:
    """The same object, if it is a policy of the decoder. Raises PolicyError for anything else."""
    if isinstance(given, (Policy, Progressive)):
        return given
    if isinstance(given, type):
        advice = f"this is the class {given.__name__}: write {given.__name__}()"
    elif isinstance(given, (list, tuple)):
        advice = f"this is a {type(given).__name__}: write Progressive([...]) for several stages"
    elif callable(getattr(given, "attached", None)):
        advice = f"{type(given).__name__} is a method of another stage: use applying(model, method)"
    else:
        advice = f"this is {given!r}" if given is None else f"this is of type {type(given).__name__}"
    raise PolicyError(f"a policy is an object such as Dash(start=0.4), or text such as 'auto' or 'dash'; {advice}")


def joined(stages: Sequence[Policy]) -> AnyPolicy:
    """A `Progressive` of several stages; a single stage stays as it is."""
    return stages[0] if len(stages) == 1 else Progressive(stages)


def update(stages: Sequence[Written], options: Mapping[str, Any]) -> tuple[Written, ...]:
    """The stages with `options` on each, in place of their own options of that name or meaning."""
    _refuse_shared(options, write(stages), len(stages))
    given = {name: value if isinstance(value, str) else _plain(value) for name, value in options.items()}
    replaced = {INSTEAD.get(name) for name in given}
    kept = [{name: value for name, value in stage.options.items() if name not in replaced} for stage in stages]
    return tuple(replace(stage, options=own | given) for stage, own in zip(stages, kept, strict=True))


def build(stage: Written, kinds: Mapping[str, type[Kind]]) -> Kind:
    """The policy or method, out of `kinds`, that a stage names. Raises PolicyError as `parse_policy` does."""
    if stage.name not in kinds:
        advice = elsewhere(stage.name)
        known = f"choose one of {', '.join(kinds)}{did_you_mean(stage.name, kinds)}"
        raise PolicyError(f"there is no policy {stage.name!r} here: {advice or known}")
    kind = kinds[stage.name]
    return kind(**_typed(stage.name, kind, stage.options))


def format_one(method: Any) -> str:
    """The canonical text of a single policy or method."""
    kind = type(method)
    hints, defaults = options_of(kind), {option.name: option.default for option in fields(kind)}
    given = [name for name in hints if getattr(method, name) != defaults[name]]
    given.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return str(Written(kind.name, {name: write_value(getattr(method, name), hints[name]) for name in given}))


def replace_options(method: Any, options: Mapping[str, Any]) -> Any:
    """A copy of a single policy or method with these options. Raises PolicyError as `override` does."""
    kind = type(method)
    defaults = {option.name: option.default for option in fields(kind)}
    replaced = {INSTEAD[name] for name in options if INSTEAD.get(name) in defaults}
    return replace(method, **{name: defaults[name] for name in replaced}, **_typed(kind.name, kind, options))


def _read_stage(text: str) -> Written:
    name, _, written = text.partition(":")
    options: dict[str, str] = {}
    for option in filter(None, map(str.strip, written.split(","))):
        key, _, value = (part.strip() for part in option.partition("="))
        key = key.replace("-", "_")
        if key in options:
            raise PolicyError(f"{text.strip()!r} gives {key} twice, as {options[key]} and as {value}: leave one out")
        options[key] = value
    return Written(name.strip(), options)


def _typed(name: str, kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `kind`; values that are text are converted to the types of their fields."""
    hints = options_of(kind)
    for option in options:
        if not hints:
            raise PolicyError(f"{name} takes no options: leave {option} out")
        if option not in hints:
            raise PolicyError(
                f"{name} has no option {option!r}; it has {', '.join(hints)}{did_you_mean(option, hints)}"
            )
    return {
        option: read_value(name, option, value, hints[option]) if isinstance(value, str) else value
        for option, value in options.items()
    }


def _refuse_shared(options: Mapping[str, Any], text: str, stages: int) -> None:
    shared = [option for option in OF_ONE_STAGE if option in options]
    if stages > 1 and shared:
        raise PolicyError(
            f"{text} has several stages, which cannot share one {shared[0]}: write the {shared[0]} of each stage into "
            "the policy"
        )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
