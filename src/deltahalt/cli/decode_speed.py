"""The time of generated tokens, as `bench --decode` shows it."""

from itertools import product
from pathlib import Path
from typing import Any

from deltahalt.cli.base import out, progress
from deltahalt.cli.tables import of_policies


def bench_decode(
    network: Any,
    name: str,
    chosen: dict[str, Any],
    sizes: list[int],
    batches: list[int],
    rows: Path | None,
    *,
    tokenizer: Any,
    repeats: int,
    **options: Any,
) -> None:
    """Measure generated tokens, and show and keep the rows of each kind of batch as it is done."""
    from deltahalt.lab.bench.decode import cells, decode_runs, decode_ways, measure_decode
    from deltahalt.lab.rows.base import append_rows

    ways = decode_ways(network, chosen, tokenizer)
    with progress() as bar:
        task = bar.add_task(name, total=decode_runs(len(ways), repeats) * len(sizes) * len(batches))
        for batch, size in product(batches, sizes):
            measured = measure_decode(
                network, name, ways, size, batch, runs=repeats, tick=lambda: bar.advance(task), **options
            )
            caption = f"{batch} x {size:,} tokens"
            out.print(of_policies([row.policy for row in measured], cells(measured), caption=caption))
            if rows is not None:
                append_rows(rows, measured)
