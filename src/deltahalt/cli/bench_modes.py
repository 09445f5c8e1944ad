"""What `bench` can measure: each mode measures, shows its rows and keeps them as they are done."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from deltahalt.cli.base import out, progress
from deltahalt.cli.tables import of_policies, side_by_side
from deltahalt.lab.bench.row import BenchRow


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to measure: a model, called `name` in rows, with the methods `chosen`, by their texts.

    rows: the file that rows are added to, or None. words: the text that prompts are cut from, or None for random
    tokens. Other fields are the options of `bench`.
    """

    network: Any
    name: str
    chosen: dict[str, Any]
    sizes: list[int]
    batches: list[int]
    rows: Path | None
    tokenizer: Any
    words: str | None
    new_tokens: int
    repeats: int
    seed: int
    piece_tokens: int | None

    @property
    def subject(self) -> tuple[Any, str, dict[str, Any]]:
        """What every mode measures."""
        return self.network, self.name, self.chosen

    def keep(self, measured: list[Any]) -> None:
        """Add rows to the file, if there is one."""
        from deltahalt.lab.rows.base import append_rows

        if self.rows is not None:
            append_rows(self.rows, measured)


def bench_policies(order: Order) -> None:
    """Measure policies in turn with the full model."""
    from deltahalt.lab.bench.measure import measure, runs
    from deltahalt.lab.bench.prompts import random_prompts, text_prompts

    with progress() as bar:
        total = runs(len(order.chosen), order.repeats) * len(order.sizes) * len(order.batches)
        task = bar.add_task(order.name, total=total)
        for batch, size in product(order.batches, order.sizes):
            bar.update(task, description=f"{order.name}, {batch} x {size:,} tokens")
            prompts = (
                random_prompts(order.network, size, batch, order.seed)
                if order.words is None
                else text_prompts(order.network, order.tokenizer, order.words, size, batch)
            )
            rounds = measure(
                *order.subject,
                prompts,
                tokenizer=order.tokenizer,
                new_tokens=order.new_tokens,
                repeats=order.repeats,
                seed=order.seed,
                tick=lambda: bar.advance(task),
            )
            measured = _last_round(rounds, order)
    out.print(f"{measured[0].machine}; {measured[0].dtype}; medians of {order.repeats} runs in turn")


def _last_round(rounds: Iterator[list[BenchRow]], order: Order) -> list[BenchRow]:
    """Show and keep the rows of the last round, or of the last one before an interruption; returns them."""
    rows: list[BenchRow] = []
    try:
        for rows in rounds:  # noqa: B007
            pass
    finally:
        if rows:
            _show(rows)
            order.keep(rows)
    return rows


def _show(rows: list[BenchRow]) -> None:
    """Rows of the same prompts side by side, a column each."""
    from deltahalt.lab.bench.table import cells

    columns = cells(rows)
    (size, *_), policies = columns.pop("prompt"), columns.pop("policy")
    lines = {head: column for head, column in columns.items() if head not in {"model", "machine"}}
    out.print(side_by_side(f"{size} tokens", [policy.strip("`") for policy in policies], lines))


def bench_new_lengths(order: Order) -> None:
    """Measure prompts of new lengths."""
    from deltahalt.lab.bench.new_lengths import cells, measure_new_lengths

    options = {"tokenizer": order.tokenizer, "new_tokens": order.new_tokens, "runs": order.repeats}
    for measured in measure_new_lengths(*order.subject, order.sizes, **options):
        caption = f"{measured[0].prompt:,} tokens"
        out.print(of_policies([row.policy for row in measured], cells(measured), caption=caption))
        order.keep(measured)


def bench_long_prompts(order: Order) -> None:
    """Measure prompts in pieces. Each row is kept at once, as a run can take minutes."""
    from deltahalt.lab.bench.long_prompts import cells, measure_long_prompts

    assert order.piece_tokens is not None
    measured = measure_long_prompts(
        *order.subject,
        order.sizes,
        piece_tokens=order.piece_tokens,
        new_tokens=order.new_tokens,
        runs=order.repeats,
        seed=order.seed,
        tokenizer=order.tokenizer,
    )
    for prompt, own in groupby(measured, key=lambda row: row.prompt):
        shown = []
        for row in own:
            order.keep([row])
            shown.append(row)
        out.print(of_policies([row.policy for row in shown], cells(shown), caption=f"{prompt:,} tokens"))


def bench_readout(order: Order) -> None:
    """Measure documents per second."""
    from deltahalt.lab.bench.readout import cells, measure_readout, readout_runs

    options = {"tokenizer": order.tokenizer, "repeats": order.repeats, "seed": order.seed}
    with progress() as bar:
        total = readout_runs(len(order.chosen), order.batches, order.repeats) * len(order.sizes)
        task = bar.add_task(order.name, total=total)
        for batch, size in product(order.batches, order.sizes):
            for measured in measure_readout(*order.subject, size, batch, tick=lambda: bar.advance(task), **options):
                out.print(of_policies([row.policy for row in measured], cells(measured), common=("tokens", "batch")))
                order.keep(measured)


def bench_decode(order: Order) -> None:
    """Measure generated tokens."""
    from deltahalt.lab.bench.decode import cells, decode_runs, decode_ways, measure_decode

    ways = decode_ways(order.network, order.chosen, order.tokenizer)
    options = {"new_tokens": order.new_tokens, "runs": order.repeats, "seed": order.seed}
    with progress() as bar:
        total = decode_runs(len(ways), order.repeats) * len(order.sizes) * len(order.batches)
        task = bar.add_task(order.name, total=total)
        for batch, size in product(order.batches, order.sizes):
            measured = measure_decode(
                order.network, order.name, ways, size, batch, tick=lambda: bar.advance(task), **options
            )
            caption = f"{batch} x {size:,} tokens"
            out.print(of_policies([row.policy for row in measured], cells(measured), caption=caption))
            order.keep(measured)


def bench_profile(order: Order) -> None:
    """Measure where the time of a prefill goes."""
    from deltahalt.lab.bench.profile import cells, measure_profiles

    options = {"tokenizer": order.tokenizer, "runs": order.repeats, "seed": order.seed}
    for size in order.sizes:
        measured = measure_profiles(*order.subject, size, **options)
        out.print(of_policies([row.policy for row in measured], cells(measured), caption=f"{size:,} tokens"))
        order.keep(measured)


MODES: dict[str | None, Callable[[Order], None]] = {
    None: bench_policies,
    "--new-lengths": bench_new_lengths,
    "--piece-tokens": bench_long_prompts,
    "--readout": bench_readout,
    "--decode": bench_decode,
    "--profile": bench_profile,
}
BATCHED = ("--readout", "--decode")  # modes that take several prompts at once
