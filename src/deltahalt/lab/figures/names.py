"""Short names of policies, for legends and labels."""

import textwrap
from collections.abc import Collection, Iterable, Sequence

from deltahalt.policies.text import Written, read, write

COUNTS = {2: "two", 3: "three", 4: "four"}
RHO = "\N{GREEK SMALL LETTER RHO}"
LONGEST = 40  # characters of a policy that a table is still easy to read with
REST = "\N{HORIZONTAL ELLIPSIS}"
WIDTH = 45  # largest number of letters in a line of a label
GLUE = "\N{NO-BREAK SPACE}"


def method(policy: str) -> str:
    """Return the name of a policy's method, or the names of the methods of its stages."""
    names = [stage.name for stage in read(policy)]
    if len(names) == 1:
        return names[0]
    return f"{COUNTS.get(len(names), len(names))} stages: {', '.join(dict.fromkeys(names))}"


def shared_options(policies: Iterable[str]) -> list[str]:
    """Return the options, `name=value`, that every stage of every policy has."""
    return _shared([stage for policy in policies for stage in read(policy)])


def shared_beyond(policies: Iterable[str]) -> list[str]:
    """Return the options that all stages with more options than a start layer and a ratio have in common.

    If there is only one such stage, the result is empty.
    """
    every = [stage for policy in policies for stage in read(policy)]
    stages = [stage for stage in every if any(_place(name) == 2 for name in stage.options)]
    beyond = [Written(stage.name, {k: v for k, v in stage.options.items() if _place(k) == 2}) for stage in stages]
    return _shared(beyond) if len(stages) > 1 else []


def without(policy: str, options: Collection[str]) -> str:
    """Return a policy's text without these options."""
    return write(
        Written(stage.name, {key: value for key, value in stage.options.items() if f"{key}={value}" not in options})
        for stage in read(policy)
    )


def briefly(policies: Iterable[str]) -> tuple[dict[str, str], str]:
    """How to write each policy where there is little room, and a sentence about what is left out; "" for nothing.

    Options that all long stages of several policies share are an ellipsis.
    """
    whole = {policy: policy for policy in policies}
    stages = [str(stage) for policy in whole for stage in read(policy) if len(policy) > LONGEST]
    shared = shared_options(stage for stage in stages if len(stage) > LONGEST)
    if not shared:
        return whole, ""
    names = {
        policy: "+".join(_without_shared(stage, shared) for stage in read(policy)) if len(policy) > LONGEST else policy
        for policy in whole
    }
    return names, f"{REST} is {','.join(shared)}"


def _without_shared(stage: Written, shared: list[str]) -> str:
    """The stage with an ellipsis for the `shared` options, if it has them all."""
    if not set(shared) <= {f"{name}={value}" for name, value in stage.options.items()}:
        return str(stage)
    rest = without(str(stage), shared)
    return f"{rest}{',' if ':' in rest else ':'}{REST}"


def legend(policy: str) -> str:
    """Return a policy's name in a legend: its method, and its options in few letters if it has some."""
    return f"{method(policy)}: {short(policy)}" if ":" in policy else policy


def short(policy: str) -> str:
    """Return a policy's options in few letters, each stage on its own lines: `l14 rho.667 chunk 64`.

    A stage without options is shown by its name.
    """
    return "\n+ ".join(_stage(stage) or stage.name for stage in read(policy))


def _stage(stage: Written) -> str:
    return _lines(_short(name, stage.options[name]) for name in sorted(stage.options, key=_place))


def _lines(options: Iterable[str]) -> str:
    """Join options with spaces, and break long lines between options, so that a label needs less width."""
    glued = " ".join(option.replace(" ", GLUE) for option in options)
    return textwrap.fill(glued, WIDTH, break_long_words=False, break_on_hyphens=False).replace(GLUE, " ")


def _shared(stages: Sequence[Written]) -> list[str]:
    """Return the options, `name=value`, that all stages have."""
    if not stages:
        return []
    common = set.intersection(*(set(stage.options.items()) for stage in stages))
    return [f"{name}={value}" for name, value in stages[0].options.items() if (name, value) in common]


def _place(name: str) -> int:
    """Return the rank of an option: first the start layer, then the ratio, then the others as given."""
    return {"start": 0, "pruning_ratio": 1}.get(name, 2)


def _short(key: str, value: str) -> str:
    if key == "start":
        return f"l{value}" if value.isdecimal() else f"l{100 * float(value):g}%"
    if key == "pruning_ratio":
        return RHO + (value.lstrip("0") or "0")
    return f"{key.replace('_', ' ')} {value}".rstrip()  # `auto:2.5` has no value
