"""Rows of `deltahalt eval` as a table: scores, and efficiency relative to the full model (DASH, Table 4)."""

from collections.abc import Callable, Sequence
from operator import attrgetter

from deltahalt.lab.rows.eval import EvalRow, paired
from deltahalt.lab.rows.markdown import differing, table
from deltahalt.policies.text import is_dense

Figure = Callable[[EvalRow], float | None]

# The fields that two rows must have in common for their costs to be compared.
setting = attrgetter(
    *("model", "task", "metric", "version", "samples", "chat_template", "batch_size", "max_length", "seed"),
    *("dtype", "device", "machine", "processes", "attention", "transformers", "torch"),
)

# Columns with a task's settings, shown if rows of one model and task differ in them.
SETTINGS: dict[str, Callable[[EvalRow], str]] = {
    "halted K/V": lambda row: row.halted_kv,
    "min prompt": lambda row: f"{row.min_prompt_tokens}",
    "chat format": lambda row: "yes" if row.chat_template else "no",
    "batch": lambda row: f"{row.batch_size}",
    "max length": lambda row: f"{row.max_length}",
}

EFFICIENCY: dict[str, Figure] = {
    "prefill": lambda row: row.prefill_seconds,
    "generation": lambda row: row.new_tokens and row.generation_seconds / row.new_tokens,
    "total": lambda row: row.prefill_seconds + row.generation_seconds,
    "throughput": lambda row: 1 / throughput(row) if row.new_tokens else None,
    "memory": lambda row: row.peak_bytes,
}


def throughput(row: EvalRow) -> float:
    """Return the tokens per second, prompts and answers together."""
    return (row.prompt_tokens + row.new_tokens) / (row.prefill_seconds + row.generation_seconds)


def markdown(rows: Sequence[EvalRow]) -> str:
    """Return a Markdown table with a line for each metric of a task and method; methods on the same task are together.

    Columns of `SETTINGS` appear only if rows of one model and task differ in them. "cut" counts the prompts that were
    longer than the model's context and lost their beginning. "beside full" is the mean difference to the full model's
    row of the same run, sample by sample, with its standard error. The columns of `EFFICIENCY` are relative to that
    row: above 1 is better, and a cell is empty if there is no such row. "generation" is the time per token, since
    answers differ in length.
    """
    scores = list(dict.fromkeys((row.model, row.task, row.metric) for row in rows))
    rows = sorted(rows, key=lambda row: scores.index((row.model, row.task, row.metric)))
    full = {setting(row): row for row in rows if is_dense(row.policy)}
    columns = {
        "model": [row.model for row in rows],
        "task": [row.task for row in rows],
        "metric": [row.metric for row in rows],
        "policy": [f"`{row.policy}`" for row in rows],
        **differing(
            {head: [cell(row) for row in rows] for head, cell in SETTINGS.items()},
            [(row.model, row.task) for row in rows],
        ),
        "score": [f"{row.value:.4f}" for row in rows],
        "stderr": ["" if row.stderr is None else f"{row.stderr:.4f}" for row in rows],
        "samples": [f"{row.samples}" for row in rows],
        "cut": [f"{row.cut}" if row.cut else "" for row in rows],
    }
    columns["beside full"] = [_beside(row, full.get(setting(row))) for row in rows]
    for head, figure in EFFICIENCY.items():
        columns[head] = [_relative(figure, full.get(setting(row)), row) for row in rows]
    return table({head: cells for head, cells in columns.items() if any(cells)})


def _beside(row: EvalRow, full: EvalRow | None) -> str:
    apart = None if full is None or full is row else paired(row, full)
    return "" if apart is None else f"{apart[0]:+.4f} ± {apart[1]:.4f}"


def _relative(figure: Figure, full: EvalRow | None, row: EvalRow) -> str:
    reference, own = None if full is None else figure(full), figure(row)
    return f"{reference / own:.2f}x" if reference and own else ""
