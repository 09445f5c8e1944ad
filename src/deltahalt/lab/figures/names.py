"""Policies in few words, for legends and labels."""

import textwrap
from collections.abc import Collection, Iterable, Sequence

from deltahalt.policies.text import Written, read, write

COUNTS = {2: "two", 3: "three", 4: "four"}
RHO = "\N{GREEK SMALL LETTER RHO}"
WIDTH = 45  # letters in a line of a label
GLUE = "\N{NO-BREAK SPACE}"


def method(policy: str) -> str:
    """What a policy's text names: a method, or several that share the work in stages."""
    names = [stage.name for stage in read(policy)]
    if len(names) == 1:
        return names[0]
    return f"{COUNTS.get(len(names), len(names))} stages: {', '.join(dict.fromkeys(names))}"


def shared_options(policies: Iterable[str]) -> list[str]:
    """The options, `name=value`, that every stage of every policy is given."""
    return _shared([stage for policy in policies for stage in read(policy)])


def shared_beyond(policies: Iterable[str]) -> list[str]:
    """The options that all stages share which are given more than a start layer and a ratio.

    None where there is one such stage: it has nobody to share with.
    """
    every = [stage for policy in policies for stage in read(policy)]
    stages = [stage for stage in every if any(_place(name) == 2 for name in stage.options)]
    beyond = [Written(stage.name, {k: v for k, v in stage.options.items() if _place(k) == 2}) for stage in stages]
    return _shared(beyond) if len(stages) > 1 else []


def without(policy: str, options: Collection[str]) -> str:
    """A policy's text without these options."""
    return write(
        Written(stage.name, {key: value for key, value in stage.options.items() if f"{key}={value}" not in options})
        for stage in read(policy)
    )


def short(policy: str) -> str:
    """A policy's options in few letters, each stage on lines of its own: `l14 rho.667 chunk 64`.

    A stage without options is named.
    """
    return "\n+ ".join(_stage(stage) or stage.name for stage in read(policy))


def _stage(stage: Written) -> str:
    return _lines(_short(name, stage.options[name]) for name in sorted(stage.options, key=_place))


def _lines(options: Iterable[str]) -> str:
    """Options one after another; lines are broken between them, so that a label finds room."""
    glued = " ".join(option.replace(" ", GLUE) for option in options)
    return textwrap.fill(glued, WIDTH, break_long_words=False, break_on_hyphens=False).replace(GLUE, " ")


def _shared(stages: Sequence[Written]) -> list[str]:
    """The options, `name=value`, that all stages have."""
    if not stages:
        return []
    common = set.intersection(*(set(stage.options.items()) for stage in stages))
    return [f"{name}={value}" for name, value in stages[0].options.items() if (name, value) in common]


def _place(name: str) -> int:
    """The start layer comes first, then the ratio, then the rest as given."""
    return {"start": 0, "pruning_ratio": 1}.get(name, 2)


def _short(key: str, value: str) -> str:
    if key == "start":
        return f"l{value}" if value.isdecimal() else f"l{100 * float(value):g}%"
    if key == "pruning_ratio":
        return RHO + (value.lstrip("0") or "0")
    return f"{key.replace('_', ' ')} {value}"
