"""Speed of vLLM's server: `bench-vllm`."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from deltahalt.cli.base import MOST_REPEATS, MOST_SAMPLES, MOST_SEED, MOST_TOKENS, out, status
from deltahalt.cli.common import parse_names, parse_numbers
from deltahalt.cli.tables import of_policies
from deltahalt.errors import InputError
from deltahalt.files import require_apart
from deltahalt.profile_names import AUTO, names_profile

DTYPES = ("bfloat16", "float16", "float32")
# Options of vLLM's server that the command sets itself, some of them by its own options.
TAKEN = ("--model", "--host", "--port", "--dtype", "--tensor-parallel-size", "-tp", "--additional-config")


def bench_vllm(
    model: Annotated[str, typer.Option(help="Hub id or local folder, as vLLM takes it.")],
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = AUTO,
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens, comma-separated.")] = "4096",
    new_tokens: Annotated[
        int, typer.Option(min=2, max=MOST_TOKENS, help="Number of tokens that each prompt gets.")
    ] = 128,
    requests: Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="Prompts sent at once.")] = 24,
    repeats: Annotated[int, typer.Option(min=1, max=MOST_REPEATS, help="Prompts sent one after the other.")] = 5,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = DTYPES[0],
    gpus: Annotated[int, typer.Option(min=1, max=64, help="Number of GPUs, by tensor parallelism.")] = 1,
    eager: Annotated[
        bool, typer.Option("--eager", help="Run all servers eagerly; else they compile, as vLLM does by default.")
    ] = False,
    options: Annotated[
        str, typer.Option(help='Further options of all servers: "--max-num-batched-tokens 16384".')
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED - 1, help="Draws the prompts.")] = 0,
    rows: Annotated[Path | None, typer.Option(help="Add the rows to this JSONL file.")] = None,
) -> None:
    """Measure vLLM's server, stock and with policies in turn, by its own load generator (see docs/vllm.md)."""
    from deltahalt.lab.bench.serving import STOCK, ServingRow, cells
    from deltahalt.lab.figures.tables import KINDS
    from deltahalt.lab.rows.base import append_rows, require_rows

    named, sizes, further = parse_names(policies, "--policies"), parse_numbers(lengths), _split(options)
    _check_policies(named)
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    if rows is not None:
        require_apart(rows, [model, *named])
        require_rows(rows, *KINDS)
    if find_spec("vllm") is None:
        raise InputError("vLLM is not installed beside this command: pip install 'deltahalt[vllm]'")
    from deltahalt.lab.bench.vllm_serving import Servers, measure_serving

    servers = Servers(model, dtype, gpus, eager, further, sizes, repeats, requests, new_tokens, seed)
    measured: list[ServingRow] = []
    every = measure_serving(servers, named)
    try:
        for name in (STOCK, *named):
            with status(f"{name}: starting a server, then {requests + repeats} prompts of each length"):
                of_one = next(every)
            measured += of_one
            if rows is not None:
                append_rows(rows, of_one)
    finally:
        if measured:
            columns = cells(measured)
            texts = [policy.strip("`") for policy in columns.pop("policy")]
            out.print(of_policies(texts, columns, common=("GPUs", "prompt", "mode", "over")))


def _split(options: str) -> list[str]:
    """Options of vLLM's server, as words. Raises InputError for some that this command sets."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--options is {options!r}: a quotation mark is not closed") from error
    for word in words:
        if word.partition("=")[0] in TAKEN:
            raise InputError(f"--options has {word}, which this command sets itself: leave it out")
    return words


def _check_policies(named: list[str]) -> None:
    """Raise what a policy raises that does not exist or that vLLM cannot run, as far as that is known here."""
    from deltahalt.integrations.vllm.options import check_runs
    from deltahalt.policies.text import parse_policy
    from deltahalt.profile import check_profile

    for policy in named:
        if names_profile(policy):
            check_profile(policy)
        else:
            check_runs(parse_policy(policy))
