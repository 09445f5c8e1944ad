"""Tables in Markdown."""

from collections.abc import Mapping, Sequence


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table of columns by head."""
    head, *body = ("| " + " | ".join(line) + " |" for line in (tuple(columns), *zip(*columns.values(), strict=True)))
    return "\n".join([head, "|" + "---|" * len(columns), *body])
