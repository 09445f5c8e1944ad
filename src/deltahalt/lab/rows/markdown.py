"""Tables in Markdown."""

from collections.abc import Mapping, Sequence


def differing(columns: Mapping[str, Sequence[str]], groups: Sequence[object] = ()) -> dict[str, Sequence[str]]:
    """Return the columns whose cells differ. groups: the group of each line; only lines of one group are compared."""
    return {
        head: cells
        for head, cells in columns.items()
        if len(set(zip(groups or [None] * len(cells), cells, strict=True))) > max(1, len(set(groups)))
    }


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """Return a Markdown table of columns by head."""
    head, *body = ("| " + " | ".join(line) + " |" for line in (tuple(columns), *zip(*columns.values(), strict=True)))
    return "\n".join([head, "|" + "---|" * len(columns), *body])
