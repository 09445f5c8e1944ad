"""Tables of long policies that can be read: what these share is written once."""

from collections.abc import Iterable

LONGEST = 40  # characters of a policy that a table is still easy to read with
REST = "\N{HORIZONTAL ELLIPSIS}"


def brief(tables: str, policies: Iterable[str]) -> str:
    """Markdown tables, in which options that all long ones of `policies` share are an ellipsis, explained above."""
    long = dict.fromkeys(policy for policy in policies if len(policy) > LONGEST)
    stages = [_options(stage) for policy in long for stage in policy.split("+")]
    shared = [option for option in stages[0] if all(option in stage for stage in stages)] if stages else []
    if not shared:
        return tables
    for policy in long:
        tables = tables.replace(f"`{policy}`", f"`{'+'.join(_brief(stage, shared) for stage in policy.split('+'))}`")
    return f"`{REST}` is `{','.join(shared)}`.\n\n{tables}"


def _brief(stage: str, shared: list[str]) -> str:
    own = [option for option in _options(stage) if option not in shared]
    return f"{stage.partition(':')[0]}:{','.join([*own, REST])}"


def _options(stage: str) -> list[str]:
    return stage.partition(":")[2].split(",")
