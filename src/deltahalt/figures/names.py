"""Policies in few words, for legends and labels."""

COUNTS = {2: "two", 3: "three", 4: "four"}
RHO = "\N{GREEK SMALL LETTER RHO}"


def method(policy: str) -> str:
    """What a policy's text names: a method, or several that share the work in stages."""
    names = [stage.partition(":")[0].strip() for stage in policy.split("+")]
    if len(names) == 1:
        return names[0]
    return f"{COUNTS.get(len(names), len(names))} stages: {', '.join(dict.fromkeys(names))}"


def short(policy: str) -> str:
    """A policy's options in few letters, a line a stage: `l14 rho.667 chunk 64`."""
    stages = [stage.partition(":")[2].split(",") for stage in policy.split("+")]
    return "\n+ ".join(
        " ".join(map(_short, sorted(filter(None, options), key=_place))) or "defaults" for options in stages
    )


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
