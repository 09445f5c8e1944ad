"""Speed: `bench`."""

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
)
from deltahalt.cli.bench_modes import BATCHED, MODES, Order
from deltahalt.cli.common import load_model, parse_names, parse_numbers, resolve_methods
from deltahalt.errors import InputError
from deltahalt.files import require_apart
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
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Show where the time of a prefill goes, by kind of kernel; no new tokens."),
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
    wanted = {
        "--new-lengths": new_lengths,
        "--readout": readout,
        "--piece-tokens": piece_tokens is not None,
        "--decode": decode,
        "--profile": profile,
    }
    mode = _mode([each for each, given in wanted.items() if given], text, batches)
    if mode == "--decode":
        check_new_tokens(new_tokens)
    if mode in ("--readout", "--profile"):
        new_tokens = 0
    if mode == "--new-lengths":
        longest += _new_lengths_room(sizes, policies=len(named), runs=repeats, new_tokens=new_tokens)
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
    order = Order(
        network=network,
        name=name,
        chosen=chosen,
        sizes=sizes,
        batches=batches,
        rows=rows,
        tokenizer=tokenizer,
        words=words,
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        piece_tokens=piece_tokens,
    )
    MODES[mode](order)


def _refuse_together(model: str | None, shape: str | None, text: Path | None) -> None:
    """Raise InputError for two options that contradict each other."""
    if model is not None and shape is not None:
        raise InputError("give either --shape or --model")
    if text is not None and shape is not None:
        raise InputError("random weights have no tokenizer: leave --text out, or give a --model")


def _refuse_what_does_not_fit(network: Any, chosen: dict[str, Any], tokenizer: Any) -> None:
    """Raise what a policy raises on this model, before anything is measured."""
    from deltahalt.methods.applying import applying

    for method in chosen.values():
        with applying(network, method, tokenizer):
            pass


def _new_lengths_room(sizes: list[int], **counts: int) -> int:
    """By how many tokens prompts exceed their length. Raises InputError if two of `sizes` are too close."""
    from deltahalt.lab.bench.new_lengths import check_lengths, spread

    check_lengths(sizes, **counts)
    return spread(**counts)


def _mode(wanted: list[str], text: Path | None, batches: list[int]) -> str | None:
    """The wanted mode, if any. Raises InputError for two of them, and for prompts that it cannot measure."""
    if len(wanted) > 1:
        raise InputError(f"{wanted[0]} and {wanted[1]} measure different things: give one of them")
    for mode in wanted:
        if text is not None:
            raise InputError(f"{mode} measures prompts of random tokens: leave --text out")
        if mode not in BATCHED and batches != [1]:
            raise InputError(f"{mode} measures single prompts: leave --batch-sizes out")
    return wanted[0] if wanted else None


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
