"""Speed: `bench`."""

from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path
from typing import Annotated, Any

import typer

from deltahalt.cli.base import (
    MOST_BATCH,
    MOST_REPEATS,
    MOST_SEED,
    MOST_TOKENS,
    AttentionOption,
    DeviceOption,
    DtypeOption,
    out,
    progress,
)
from deltahalt.cli.common import load_model, parse_names, parse_numbers, resolve_methods
from deltahalt.cli.decode_speed import bench_decode
from deltahalt.cli.tables import of_policies, side_by_side
from deltahalt.errors import InputError
from deltahalt.files import require_apart
from deltahalt.lab.bench.row import BenchRow
from deltahalt.lab.bench.table import cells
from deltahalt.methods.base import Method
from deltahalt.methods.registry import check_method
from deltahalt.profile_names import AUTO


def bench(
    model: Annotated[str | None, typer.Option(help="Measure this model (default: smollm2-135m).")] = None,
    shape: Annotated[str | None, typer.Option(help="Measure random weights of this shape instead.")] = None,
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = AUTO,
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens, comma-separated.")] = "4096",
    batch_sizes: Annotated[str, typer.Option(help="Prompts at once, comma-separated.")] = "1",
    new_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            help="Number of tokens to generate, even after an end token; 1 measures the prefill alone.",
        ),
    ] = 32,
    text: Annotated[
        Path | None, typer.Option(help="Text file to cut prompts from, tokenized in every run; else random tokens.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=MOST_REPEATS, help="Measured runs each way, after one warm-up.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Draws the prompts, and weights of a --shape.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    attention: AttentionOption = None,
    rows: Annotated[Path | None, typer.Option(help="Add the rows to this JSONL file.")] = None,
    new_lengths: Annotated[
        bool,
        typer.Option("--new-lengths", help="Give each run a length of its own, with cuDNN's attention and without."),
    ] = False,
    readout: Annotated[
        bool,
        typer.Option(
            "--readout", help="Documents per second of an embedder: of half of each length to all of it, no new tokens."
        ),
    ] = False,
    decode: Annotated[
        bool,
        typer.Option("--decode", help="Time generated tokens, with CUDA graphs and without."),
    ] = False,
    piece_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            help="Run policies in pieces of this number of prompt tokens. Where memory is too small, the row says so.",
        ),
    ] = None,
) -> None:
    """Measure time, memory and FLOPs of policies in turn with the full model (see docs/bench.md)."""
    from deltahalt.answering.documents import read_document
    from deltahalt.cli.before import check_text_model
    from deltahalt.lab.bench.measure import check_new_tokens, require_room
    from deltahalt.lab.figures.tables import KINDS
    from deltahalt.lab.rows.base import require_rows

    _refuse_together(model, shape, text)
    named = parse_names(policies, "--policies")
    known = [check_method(policy) for policy in named]
    if rows is not None:
        require_apart(rows, [model, text, *named])
        require_rows(rows, *KINDS)
    sizes, batches = parse_numbers(lengths), parse_numbers(batch_sizes, MOST_BATCH)
    longest = max(sizes)
    modes = {"new_lengths": new_lengths, "readout": readout, "pieces": piece_tokens is not None, "decode": decode}
    _refuse_modes(text, batches, **modes)
    if decode:
        check_new_tokens(new_tokens)
    if readout:
        new_tokens = 0
    if new_lengths:
        longest += _new_lengths_room(sizes, batches, text, policies=len(named), runs=repeats, new_tokens=new_tokens)
    words = None if text is None else read_document(str(text))
    options: dict[str, Any] = {"dtype": dtype, "device": device, "attention": attention}
    if shape is None:
        name = model or "smollm2-135m"
        require_room(check_text_model(name, known, device=device), name, longest, new_tokens)
        network, tokenizer, name = load_model(name, **options)
    else:
        name, tokenizer = f"random {shape}", None
        options |= {"longest": longest + new_tokens, "tokens": longest * max(batches), "seed": seed}
        network = _random(shape, known, **options)
    chosen = resolve_methods(named, network)
    _refuse_what_does_not_fit(network, chosen, tokenizer)
    if new_lengths:
        _bench_new_lengths(network, name, chosen, sizes, rows, tokenizer=tokenizer, new_tokens=new_tokens, runs=repeats)
        return
    if readout:
        _bench_readout(network, name, chosen, sizes, batches, rows, tokenizer=tokenizer, repeats=repeats, seed=seed)
        return
    if decode:
        options = {"tokenizer": tokenizer, "new_tokens": new_tokens, "repeats": repeats, "seed": seed}
        bench_decode(network, name, chosen, sizes, batches, rows, **options)
        return
    if piece_tokens is not None:
        options = {"piece_tokens": piece_tokens, "new_tokens": new_tokens, "runs": repeats, "seed": seed}
        _bench_long_prompts(network, name, chosen, sizes, rows, tokenizer=tokenizer, **options)
        return
    options = {"tokenizer": tokenizer, "new_tokens": new_tokens, "repeats": repeats, "seed": seed}
    _bench_policies(network, name, chosen, sizes, batches, rows, words=words, **options)


def _bench_policies(
    network: Any,
    name: str,
    chosen: dict[str, Any],
    sizes: list[int],
    batches: list[int],
    rows: Path | None,
    *,
    words: str | None,
    tokenizer: Any,
    repeats: int,
    seed: int,
    **options: Any,
) -> None:
    """Measure policies in turn with the full model, and show and keep the rows of each kind of batch as it is done."""
    from deltahalt.lab.bench.measure import measure, runs
    from deltahalt.lab.bench.prompts import random_prompts, text_prompts

    with progress() as bar:
        task = bar.add_task(name, total=runs(len(chosen), repeats) * len(sizes) * len(batches))
        options |= {"tokenizer": tokenizer, "repeats": repeats, "seed": seed, "tick": lambda: bar.advance(task)}
        for batch, size in product(batches, sizes):
            bar.update(task, description=f"{name}, {batch} x {size:,} tokens")
            prompts = (
                random_prompts(network, size, batch, seed)
                if words is None
                else text_prompts(network, tokenizer, words, size, batch)
            )
            measured = _show_and_keep(measure(network, name, chosen, prompts, **options), rows)
    out.print(f"{measured[0].machine}; {measured[0].dtype}; medians of {repeats} runs in turn")


def _refuse_together(model: str | None, shape: str | None, text: Path | None) -> None:
    """Raise InputError for two options that contradict each other."""
    if model is not None and shape is not None:
        raise InputError("give either --shape or --model")
    if text is not None and shape is not None:
        raise InputError("random weights have no tokenizer: leave --text out, or give a --model")


def _show_and_keep(rounds: Iterator[list[BenchRow]], file: Path | None) -> list[BenchRow]:
    """Show the rows of the last round, or of the last one before an interruption, then write them; returns them."""
    from deltahalt.lab.rows.base import append_rows

    rows: list[BenchRow] = []
    try:
        for rows in rounds:  # noqa: B007
            pass
    finally:
        if rows:
            _show(rows)
            if file is not None:
                append_rows(file, rows)
    return rows


def _refuse_what_does_not_fit(network: Any, chosen: dict[str, Any], tokenizer: Any) -> None:
    """Raise what a policy raises on this model, before anything is measured."""
    from deltahalt.methods.applying import applying

    for method in chosen.values():
        with applying(network, method, tokenizer):
            pass


def _new_lengths_room(sizes: list[int], batches: list[int], text: Path | None, **counts: int) -> int:
    """By how many tokens prompts exceed their length. Raises InputError for what --new-lengths cannot measure."""
    from deltahalt.lab.bench.new_lengths import check_lengths, spread

    if text is not None or batches != [1]:
        raise InputError("--new-lengths measures single random prompts: leave --text and --batch-sizes out")
    check_lengths(sizes, **counts)
    return spread(**counts)


def _bench_new_lengths(
    network: Any, name: str, chosen: dict[str, Any], sizes: list[int], rows: Path | None, **options: Any
) -> None:
    """Measure prompts of new lengths, and show and keep the rows of each length as it is done."""
    from deltahalt.lab.bench.new_lengths import measure_new_lengths
    from deltahalt.lab.rows.base import append_rows

    for measured in measure_new_lengths(network, name, chosen, sizes, **options):
        columns = {
            "attention": [row.attention for row in measured],
            "prefill s": [f"{row.prefill:.3f}" for row in measured],
            "ms a token": [f"{1000 * row.token:.1f}" for row in measured],
        }
        out.print(of_policies([row.policy for row in measured], columns, caption=f"{measured[0].prompt:,} tokens"))
        if rows is not None:
            append_rows(rows, measured)


def _bench_long_prompts(
    network: Any, name: str, chosen: dict[str, Any], sizes: list[int], rows: Path | None, **options: Any
) -> None:
    """Measure prompts in pieces, and show the rows of each length; each is kept at once, as a run can take minutes."""
    from deltahalt.lab.bench.long_prompts import cells, measure_long_prompts
    from deltahalt.lab.rows.base import append_rows

    measured = measure_long_prompts(network, name, chosen, sizes, **options)
    for prompt, own in groupby(measured, key=lambda row: row.prompt):
        shown = []
        for row in own:
            if rows is not None:
                append_rows(rows, [row])
            shown.append(row)
        out.print(of_policies([row.policy for row in shown], cells(shown), caption=f"{prompt:,} tokens"))


def _refuse_modes(
    text: Path | None, batches: list[int], *, new_lengths: bool, readout: bool, pieces: bool, decode: bool
) -> None:
    """Raise InputError for what --piece-tokens, --decode or --readout cannot measure."""
    if decode and (text is not None or new_lengths or readout or pieces):
        raise InputError(
            "--decode measures tokens after random prompts: leave --text, --new-lengths, --readout and --piece-tokens "
            "out"
        )
    if pieces and (text is not None or new_lengths or readout or batches != [1]):
        raise InputError(
            "--piece-tokens measures single prompts of random tokens: leave --text, --new-lengths, --readout and "
            "--batch-sizes out"
        )
    if readout and (text is not None or new_lengths):
        raise InputError("--readout measures documents of random tokens: leave --text and --new-lengths out")


def _bench_readout(
    network: Any,
    name: str,
    chosen: dict[str, Any],
    sizes: list[int],
    batches: list[int],
    rows: Path | None,
    *,
    repeats: int,
    **options: Any,
) -> None:
    """Measure documents per second, and show and keep the rows of each kind of batch as it is done."""
    from deltahalt.lab.bench.readout import cells, measure_readout, readout_runs
    from deltahalt.lab.rows.base import append_rows

    with progress() as bar:
        task = bar.add_task(name, total=readout_runs(len(chosen), batches, repeats) * len(sizes))
        for batch, size in product(batches, sizes):
            measures = measure_readout(
                network, name, chosen, size, batch, repeats=repeats, tick=lambda: bar.advance(task), **options
            )
            for measured in measures:
                out.print(of_policies([row.policy for row in measured], cells(measured), common=("tokens", "batch")))
                if rows is not None:
                    append_rows(rows, measured)


def _random(
    shape: str,
    methods: list[Method | None],
    *,
    dtype: str,
    device: str | None,
    attention: str | None,
    longest: int,
    tokens: int,
    seed: int,
) -> Any:
    """A model of this shape for prompts of up to `longest` tokens, refused where `tokens` at once cannot fit."""
    from deltahalt.flops import ModelShape
    from deltahalt.lab.bench.shape import random_config, random_model, require_memory
    from deltahalt.loading.models import find_device, find_dtype

    sizes, number, place = ModelShape.parse(shape), find_dtype(dtype, "float32"), find_device(device)
    for method in methods:
        if method is not None:
            method.check(random_config(sizes, longest=longest))
    require_memory(sizes, number, place, tokens)
    return random_model(sizes, dtype=number, device=place, longest=longest, seed=seed, attention=attention)


def _show(rows: list[BenchRow]) -> None:
    """Rows of the same prompts side by side, a column each."""
    columns = cells(rows)
    (size, *_), policies = columns.pop("prompt"), columns.pop("policy")
    lines = {head: column for head, column in columns.items() if head not in {"model", "machine"}}
    out.print(side_by_side(f"{size} tokens", [policy.strip("`") for policy in policies], lines))
