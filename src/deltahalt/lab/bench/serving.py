"""Prompts served by vLLM, with halting and without: rows that `recipes/time_vllm.py` measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table

STOCK = "stock vLLM"


@dataclass(frozen=True)
class ServingRow(RanRow):
    """Prompts of about `prompt` tokens, each of another length, served by an engine of vLLM in one process.

    policy: the plugin's, or STOCK. graphs: how tokens are generated: "on", with CUDA graphs; "off", eagerly; "default",
    as stock vLLM does, compiled. vllm: its version. gpus: number of them, by tensor parallelism. first_token: seconds
    until the first token of one prompt, the median over `runs` prompts after one warm-up. Then, where they were
    measured, else None: token: seconds of each later token of one prompt, the median over `new_tokens`; per_second:
    requests finished per second, of `requests` that come at once, with `new_tokens` each.
    """

    kind: ClassVar[str] = "serving"

    model: str
    policy: str
    graphs: str
    vllm: str
    gpus: int
    prompt: int
    runs: int
    first_token: float
    new_tokens: int | None
    token: float | None
    requests: int | None
    per_second: float | None


def markdown(rows: Sequence[ServingRow]) -> str:
    """Return the rows as a Markdown table; gains are beside the first stock row of the same prompts."""
    columns = {
        "GPUs": [f"{row.gpus}" for row in rows],
        "prompt": [f"{row.prompt:,}" for row in rows],
        "policy": [row.policy if row.policy == STOCK else f"`{row.policy}`" for row in rows],
        "graphs": [row.graphs for row in rows],
        "first token s": [f"{row.first_token:.3f}" for row in rows],
        "gain": [_gain(row, rows, "first_token") for row in rows],
        "ms a token": [_number(row.token, 1000, 1) for row in rows],
        "requests/s": [_number(row.per_second, 1, 2) for row in rows],
        "gain in requests": [_gain(row, rows, "per_second") for row in rows],
    }
    return table({head: cells for head, cells in columns.items() if any(cells)})


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _gain(row: ServingRow, rows: Sequence[ServingRow], figure: str) -> str:
    """How many times as good the figure is as that of stock vLLM: a time that is shorter, or a rate that is higher."""
    same = (other for other in rows if (other.prompt, other.gpus) == (row.prompt, row.gpus))
    stock = next((other for other in same if other.policy == STOCK), None)
    own: Any = getattr(row, figure)
    if stock is None or own is None or row.policy == STOCK:
        return ""
    theirs: Any = getattr(stock, figure)
    return f"{theirs / own if figure == 'first_token' else own / theirs:.2f}x"
