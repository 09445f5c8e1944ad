"""Prompts served by vLLM, with halting and without: rows of `deltahalt bench-vllm` and `recipes/time_vllm.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.lab.rows.base import RanRow
from deltahalt.lab.rows.markdown import table

STOCK = "stock vLLM"
# Options of vLLM's engine by the mode of a row
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "graphs": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
    "eager": {"enforce_eager": True},
}


@dataclass(frozen=True)
class ServingRow(RanRow):
    """Prompts of about `prompt` tokens, served by vLLM.

    policy: the plugin's, or STOCK. mode: "default", as vLLM does by default, compiled and, on a GPU, with CUDA graphs;
    "graphs", with CUDA graphs of steps that only decode, and not compiled; "eager", with neither. vllm: its version.
    gpus: number of them, by tensor parallelism. first_token: seconds until the first token of one prompt, the median
    over `runs` prompts after one warm-up. Then, where they were measured, else None: token: seconds of each later token
    of one prompt, the median over `new_tokens`; per_second: requests finished per second, of `requests` that come at
    once, with `new_tokens` each.

    http: whether `vllm bench serve` sent prompts of one length to a server, so that times include HTTP and
    tokenization, and `token` is the median over `runs` prompts. Else an engine in one process got their ids, and each
    prompt has another length.

    gibibytes, at_once: the memory for K and V, where it was set so that not all requests fit, and the largest number of
    requests that ran at once.
    """

    kind: ClassVar[str] = "serving"

    model: str
    policy: str
    mode: str
    vllm: str
    gpus: int
    prompt: int
    runs: int
    first_token: float
    new_tokens: int | None
    token: float | None
    requests: int | None
    per_second: float | None
    http: bool = False
    gibibytes: int | None = None
    at_once: int | None = None


def markdown(rows: Sequence[ServingRow]) -> str:
    """Return the rows as a Markdown table: see `cells`. The mode and the number of GPUs are there if they differ."""
    columns = cells(rows)
    return table(
        {head: columns[head] for head in columns if head not in ("GPUs", "mode") or len(set(columns[head])) > 1}
    )


def cells(rows: Sequence[ServingRow]) -> dict[str, list[str]]:
    """The cells of each column that has some, by its head; gains are beside stock vLLM in the same mode."""
    columns = {
        "over": ["HTTP" if row.http else "" for row in rows],
        "GPUs": [f"{row.gpus}" for row in rows],
        "K/V GiB": [_number(row.gibibytes, 1, 0) for row in rows],
        "prompt": [f"{row.prompt:,}" for row in rows],
        "policy": [row.policy if row.policy == STOCK else f"`{row.policy}`" for row in rows],
        "mode": [row.mode for row in rows],
        "first token s": [f"{row.first_token:.3f}" for row in rows],
        "gain": [_gain(row, rows, "first_token") for row in rows],
        "ms a token": [_number(row.token, 1000, 1) for row in rows],
        "requests/s": [_number(row.per_second, 1, 2) for row in rows],
        "gain in requests": [_gain(row, rows, "per_second") for row in rows],
        "at once": [_number(row.at_once, 1, 0) for row in rows],
    }
    return {head: column for head, column in columns.items() if any(column)}


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _setting(row: ServingRow) -> tuple[Any, ...]:
    return row.prompt, row.gpus, row.http, row.gibibytes, row.mode


def _gain(row: ServingRow, rows: Sequence[ServingRow], figure: str) -> str:
    """How many times as good the figure is as that of stock vLLM: a time that is shorter, or a rate that is higher."""
    same = (other for other in rows if _setting(other) == _setting(row))
    stock = next((other for other in same if other.policy == STOCK), None)
    own: Any = getattr(row, figure)
    if stock is None or own is None or row.policy == STOCK:
        return ""
    theirs: Any = getattr(stock, figure)
    return f"{theirs / own if figure == 'first_token' else own / theirs:.2f}x"
