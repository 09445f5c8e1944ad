"""Tables of long policies that can be read: what these share is written once."""

from collections.abc import Iterable

from deltahalt.figures.names import shared_options, without

LONGEST = 40  # characters of a policy that a table is still easy to read with
REST = "\N{HORIZONTAL ELLIPSIS}"


def brief(tables: str, policies: Iterable[str]) -> str:
    """Markdown tables, in which options that all long ones of `policies` share are an ellipsis, explained above."""
    long = dict.fromkeys(policy for policy in policies if len(policy) > LONGEST)
    shared = shared_options(long)
    if not shared:
        return tables
    for policy in long:
        stages = without(policy, shared).split("+")
        shown = "+".join(f"{stage}{',' if ':' in stage else ':'}{REST}" for stage in stages)
        tables = tables.replace(f"`{policy}`", f"`{shown}`")
    return f"`{REST}` is `{','.join(shared)}`.\n\n{tables}"
