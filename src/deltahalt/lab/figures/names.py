"""Policies in few words, for legends and labels."""

import textwrap
from collections.abc import Collection, Iterable

COUNTS = {2: "two", 3: "three", 4: "four"}
RHO = "\N{GREEK SMALL LETTER RHO}"
WIDTH = 45  # letters in a line of a label
GLUE = "\N{NO-BREAK SPACE}"


def method(policy: str) -> str:
    """What a policy's text names: a method, or several that share the work in stages."""
    names = [stage.partition(":")[0].strip() for stage in policy.split("+")]
    if len(names) == 1:
        return names[0]
    return f"{COUNTS.get(len(names), len(names))} stages: {', '.join(dict.fromkeys(names))}"


def shared_options(policies: Iterable[str]) -> list[str]:
    """The options, `name=value`, that every stage of every policy is given."""
    stages = [_options(stage) for policy in policies for stage in policy.split("+")]
    return [option for option in stages[0] if all(option in stage for stage in stages)] if stages else []


def shared_beyond(policies: Iterable[str]) -> list[str]:
    """The options that all stages share which are given more than a start layer and a ratio.

    None where there is one such stage: it has nobody to share with.
    """
    every = [stage for policy in policies for stage in policy.split("+")]
    stages = [stage for stage in every if any(_place(option) == 2 for option in _options(stage))]
    return [option for option in shared_options(stages) if _place(option) == 2] if len(stages) > 1 else []


def without(policy: str, options: Collection[str]) -> str:
    """A policy's text without these options."""
    stages = []
    for stage in policy.split("+"):
        own = ",".join(option for option in _options(stage) if option not in options)
        stages.append(stage.partition(":")[0] + (f":{own}" if own else ""))
    return "+".join(stages)


def short(policy: str) -> str:
    """A policy's options in few letters, each stage on lines of its own: `l14 rho.667 chunk 64`.

    A stage without options is named.
    """
    return "\n+ ".join(_lines(map(_short, sorted(_options(stage), key=_place))) or stage for stage in policy.split("+"))


def _lines(options: Iterable[str]) -> str:
    """Options one after another; lines are broken between them, so that a label finds room."""
    glued = " ".join(option.replace(" ", GLUE) for option in options)
    return textwrap.fill(glued, WIDTH, break_long_words=False, break_on_hyphens=False).replace(GLUE, " ")


def _options(stage: str) -> list[str]:
    return [option for option in stage.partition(":")[2].split(",") if option]


def _place(option: str) -> int:
    """The start layer comes first, then the ratio, then the rest as given."""
    return {"start": 0, "pruning_ratio": 1}.get(_split(option)[0], 2)


def _short(option: str) -> str:
    key, value = _split(option)
    if key == "start":
        return f"l{value}" if value.isdecimal() else f"l{100 * float(value):g}%"
    if key == "pruning_ratio":
        return RHO + (value.lstrip("0") or "0")
    return f"{key.replace('_', ' ')} {value}"


def _split(option: str) -> tuple[str, str]:
    key, _, value = option.partition("=")
    return key.strip().replace("-", "_"), value.strip()
