"""Rows of the bench as a table: costs of the full model and the policy, and gains."""

from collections.abc import Callable, Sequence

from deltahalt.lab.bench.row import BenchRow, Cost
from deltahalt.lab.rows.markdown import table

GB = 1e9
Cell = Callable[[BenchRow], str | None]


def _both(figure: Callable[[BenchRow, Cost], float | None], style: str) -> Cell:
    def cell(row: BenchRow) -> str | None:
        full, halted = figure(row, row.full), figure(row, row.halted)
        return None if full is None or halted is None else f"{full:{style}} / {halted:{style}}"

    return cell


def _gain(figure: str) -> Cell:
    def cell(row: BenchRow) -> str | None:
        gain: float | None = getattr(row.gain, figure)
        return None if gain is None else f"{gain:.2f}x"

    return cell


COLUMNS: dict[str, Cell] = {
    "model": lambda row: row.model,
    "policy": lambda row: f"`{row.policy}`",
    "prompt": lambda row: f"{row.prompt:,}" if row.batch == 1 else f"{row.batch} x {row.prompt:,}",
    "prefill s": _both(lambda _, cost: cost.prefill, ".3f"),
    "prefill": _gain("prefill"),
    "bound": _gain("flops"),
    "share": lambda row: f"{row.share:.2f}",
    "own share": lambda row: f"{row.share * (1 + row.overhead):.2f}",
    "overhead": lambda row: f"{100 * row.overhead:+.1f} %",
    "first token": _gain("first_token"),
    "new": lambda row: f"{row.new_tokens}" if row.new_tokens > 1 else None,
    "generation": _gain("generation"),
    "total": lambda row: _gain("total")(row) if row.new_tokens > 1 else None,
    "tokens/s": _both(lambda row, cost: row.throughput(cost) if row.new_tokens > 1 else None, ",.0f"),
    "K/V": _gain("kv_bytes"),
    "peak GB": _both(lambda _, cost: cost.peak_bytes and cost.peak_bytes / GB, ".1f"),
    "memory": _gain("peak_bytes"),
    "machine": lambda row: f"{row.machine}, {row.dtype}",
}


def cells(rows: Sequence[BenchRow]) -> dict[str, list[str]]:
    """Return the table's columns by head, without columns that are empty in every row."""
    columns = {head: [cell(row) or "" for row in rows] for head, cell in COLUMNS.items()}
    return {head: column for head, column in columns.items() if any(column)}


def markdown(rows: Sequence[BenchRow]) -> str:
    """Return a Markdown table. Pairs are full / halted; 1.50x means that the full model costs 1.5 times as much."""
    return table(cells(rows))
