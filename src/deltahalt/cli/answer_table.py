"""Tables for the terminal. They show what they are given and compute nothing but ratios."""

from itertools import groupby

from rich.console import Console
from rich.table import Table

from deltahalt.answering.ask import Answer


def show_answers(console: Console, answers: dict[str, Answer]) -> None:
    """Answers side by side, one column each; ratios are against the first."""
    table = Table(title=f"prompt of {next(iter(answers.values())).prompt_tokens:,} tokens", title_justify="left")
    table.add_column("")
    for name in answers:
        table.add_column(name, overflow="fold")
    first = next(iter(answers.values()))
    rows = {
        "answer": lambda a: a.text,
        "prefill seconds": lambda a: _ratio(f"{a.prefill_seconds:.2f}", first.prefill_seconds, a.prefill_seconds),
        "prefill TFLOPs": lambda a: _ratio(f"{a.flops / 1e12:.2f}", first.flops, a.flops),
        "K/V cache MB": lambda a: _ratio(f"{a.cache_bytes / 1e6:.1f}", first.cache_bytes, a.cache_bytes),
        "tokens per layer": lambda a: _runs(a.lengths),
        "decode seconds": lambda a: f"{a.decode_seconds:.2f} ({a.new_tokens} tokens)",
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, answers.values()))
    console.print(table)


def _ratio(value: str, full: float, own: float) -> str:
    if own == full:
        return value
    return f"{value}  ({full / own:.2f}x less)" if own < full else f"{value}  ({own / full:.2f}x more)"


def _runs(lengths: tuple[int, ...]) -> str:
    """Equal neighbours written once: "layers 0-12: 4,300", a line for each run of layers."""
    lines, layer = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        run_of = f"layer {layer}" if count == 1 else f"layers {layer}-{layer + count - 1}"
        lines.append(f"{run_of}: {length:,}")
        layer += count
    return "\n".join(lines)
