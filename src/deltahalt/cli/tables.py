"""Tables that fit a terminal of 80 columns: what all lines share is said once, below the table."""

import textwrap
from collections.abc import Collection, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table

from deltahalt.lab.figures.names import briefly


def fitted(
    columns: Mapping[str, Sequence[str]],
    *,
    fold: str,
    common: Collection[str] = (),
    caption: str = "",
    title: str | None = None,
) -> RenderableType:
    """A table of columns by head.

    Args:
        columns: The cells of each column, one for each line.
        fold: The head of the column whose cells may be broken over several lines; all others stay whole.
        common: Heads of columns that are said below the table where all lines agree in them.
        caption: What else to say there.
        title: What to say above it.
    """
    lines = len(columns[fold])
    alike = [head for head in common if head in columns and lines > 1 and len(set(columns[head])) == 1]
    shown = {head: cells for head, cells in columns.items() if head not in alike}
    notes = [*(f"{head}: {columns[head][0]}" for head in alike), *filter(None, [caption])]
    table = Table(title=title, title_justify="left")
    for head, cells in shown.items():
        if head == fold:
            table.add_column(head, overflow="fold")
        else:
            table.add_column(_stacked(head, cells), no_wrap=True)
    for line in zip(*shown.values(), strict=True):
        table.add_row(*line)
    return Group(table, "; ".join(notes)) if notes else table


def of_policies(
    policies: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    *,
    common: Collection[str] = (),
    caption: str = "",
) -> RenderableType:
    """A table with a line for each policy; options that all long ones share are an ellipsis, explained below it."""
    names, shared = _brief(policies)
    notes = "; ".join(filter(None, [shared, caption]))
    return fitted(
        {"policy": [names[policy] for policy in policies], **columns}, fold="policy", common=common, caption=notes
    )


def side_by_side(head: str, policies: Sequence[str], rows: Mapping[str, Sequence[str]]) -> RenderableType:
    """A table with a column for each policy, and a line for each of `rows`."""
    names, shared = _brief(policies)
    columns = (Column(names[policy], overflow="fold") for policy in policies)
    table = Table(head, *columns)
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return Group(table, shared) if shared else table


def _brief(policies: Sequence[str]) -> tuple[dict[str, str], str]:
    """As `briefly`; a single policy stays whole."""
    return briefly(policies) if len(set(policies)) > 1 else ({policy: policy for policy in policies}, "")


def _stacked(head: str, cells: Sequence[str]) -> str:
    """A head broken between words where it is wider than its cells."""
    width = max([*map(len, cells), *map(len, head.split())])
    return textwrap.fill(head, width, break_long_words=False, break_on_hyphens=False)
