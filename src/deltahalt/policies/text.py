"""Policies as text, the one place that parses, formats and overrides them.

`dash`, `dash:start=11,pruning_ratio=0.5`, or stages joined by `+`: `key-norm:start=0.15+window-attention:start=0.5`.
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
# The order of options in text; all others follow as their class has them.
FIRST = ("start", "pruning_ratio", "boundary", "heads", "chunk", "keep_first", "keep_last")
OF_ONE_STAGE = ("start", "pruning_ratio")  # options that stages cannot have in common


@dataclass(frozen=True)
class Written:
    """One stage of a text: a name and options as they are written, none of them checked yet."""

    name: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


def read(text: str) -> tuple[Written, ...]:
    """The stages of a text, whether or not there are such policies. Raises PolicyError for a repeated option."""
    return tuple(map(_read_stage, text.split("+")))


def write(stages: Iterable[Written]) -> str:
    """The text that `read` reads."""
    return "+".join(map(str, stages))


def is_dense(text: str) -> bool:
    """Whether a text names the full model."""
    return [stage.name for stage in read(text)] == ["dense"]


def known_policies() -> dict[str, type[Policy]]:
    """All policies by name, those of other packages included."""
    return found(PACKAGE, Policy)


def parse_policy(text: str, **overrides: Any) -> AnyPolicy:
    """Build a policy from its text, `name:option=value,...`, with stages joined by `+`.

    Args:
        text: What `format_policy` writes, or a user does; `keep-first` is `keep_first`.
        overrides: Options, typed or as text, that take the place of those in the text, on every stage.

    Returns:
        A Policy, or a Progressive of several stages.

    Raises:
        PolicyError: For an unknown name or option, a value out of range, or an option that is given twice.

    Example:
        >>> parse_policy("dash:start=11,pruning_ratio=0.5").start
        11
    """
    stages = update(read(text), overrides)
    return joined([build(stage, known_policies()) for stage in stages])


def format_policy(policy: AnyPolicy) -> str:
    """The canonical text of a policy: its options that differ from the defaults; `parse_policy` reads it back.

    Example:
        >>> format_policy(parse_policy("dash:keep_last=32, start=11"))
        'dash:start=11'
    """
    parts = policy.stages if isinstance(policy, Progressive) else (policy,)
    return "+".join(map(format_one, parts))


def override(policy: AnyPolicy, **options: Any) -> AnyPolicy:
    """The policy with these options, typed or as text, on each of its stages.

    Raises:
        PolicyError: For an unknown option, a value out of range, and for a start or ratio that several stages would
            have in common.

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
    """The text of a policy or method with `options` on each stage. Raises PolicyError where it names one of them."""
    for stage in read(text) if options else ():
        if both := [option for option in options if option in stage.options]:
            raise PolicyError(
                f"{both[0]} is given twice: as {stage.options[both[0]]} in {text!r}, and as {options[both[0]]} by an "
                "option of its own; leave one out"
            )
    return write(update(read(text), options)) if options else text


def require_policy(given: Any) -> AnyPolicy:
    """What is given, where it is a policy of the decoder. Raises PolicyError, which says what to write, where not."""
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
    raise PolicyError(f"a policy is an object such as Dash(start=0.4), or a text such as 'auto' or 'dash'; {advice}")


def joined(stages: Sequence[Policy]) -> AnyPolicy:
    """One policy of several stages, or the only one as it is."""
    return stages[0] if len(stages) == 1 else Progressive(stages)


def update(stages: Sequence[Written], options: Mapping[str, Any]) -> tuple[Written, ...]:
    """The stages with `options` on each, in place of those that they name themselves."""
    _refuse_shared(options, write(stages), len(stages))
    given = {name: value if isinstance(value, str) else _plain(value) for name, value in options.items()}
    return tuple(replace(stage, options={**stage.options, **given}) for stage in stages)


def build(stage: Written, kinds: Mapping[str, type[Kind]]) -> Kind:
    """The one of `kinds` that a stage names, with its options. Raises PolicyError as `parse_policy` does."""
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
    """A single policy or method with these options, typed or as text. Raises PolicyError as `override` does."""
    kind = type(method)
    return replace(method, **_typed(kind.name, kind, options))


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
    """The options of `kind` with those that are text read by their types."""
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
            f"{text} has several stages, which cannot have one {shared[0]} in common: write the policy with the "
            f"{shared[0]} of each stage"
        )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
