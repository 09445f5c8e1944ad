"""Tables of long policies that can be read: what these share is written once."""

from collections.abc import Iterable

from deltahalt.lab.figures.names import shared_options, without
from deltahalt.policies.text import Written, read

LONGEST = 40  # characters of a policy that a table is still easy to read with
REST = "\N{HORIZONTAL ELLIPSIS}"


def brief(tables: str, policies: Iterable[str]) -> str:
    """Markdown tables, in which options that all long stages of `policies` share are an ellipsis, explained above."""
    long = dict.fromkeys(policy for policy in policies if len(policy) > LONGEST)
    stages = [str(stage) for policy in long for stage in read(policy)]
    shared = shared_options(stage for stage in stages if len(stage) > LONGEST)
    if not shared:
        return tables
    for policy in long:
        shown = "+".join(_briefly(stage, shared) for stage in read(policy))
        tables = tables.replace(f"`{policy}`", f"`{shown}`")
    return f"`{REST}` is `{','.join(shared)}`.\n\n{tables}"


def _briefly(stage: Written, shared: list[str]) -> str:
    """The stage with an ellipsis for the `shared` options, if it has them all."""
    if not set(shared) <= {f"{name}={value}" for name, value in stage.options.items()}:
        return str(stage)
    rest = without(str(stage), shared)
    return f"{rest}{',' if ':' in rest else ':'}{REST}"
