"""Markdown tables of long policies that can be read: what these share is written once."""

from collections.abc import Iterable

from deltahalt.lab.figures.names import REST, briefly


def brief(tables: str, policies: Iterable[str]) -> str:
    """Markdown tables, in which options that all long stages of `policies` share are an ellipsis, explained above."""
    names, shared = briefly(policies)
    if not shared:
        return tables
    for policy, shown in names.items():
        tables = tables.replace(f"`{policy}`", f"`{shown}`")
    options = shared.removeprefix(f"{REST} is ")
    return f"`{REST}` is `{options}`.\n\n{tables}"
