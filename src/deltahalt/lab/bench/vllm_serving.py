"""Stock vLLM and vLLM with halting, each as a server under the same load."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import deltahalt
from deltahalt.integrations.vllm.versions import installed
from deltahalt.lab.bench.machine import machine_name
from deltahalt.lab.bench.serving import STOCK, ServingRow
from deltahalt.lab.bench.vllm_load import Load, send
from deltahalt.lab.bench.vllm_server import serving

SPARE = 16  # tokens beside a prompt and its answer, such as one that begins every prompt


@dataclass(frozen=True)
class Servers:
    """How each server runs, and what it is given.

    model: hub id or folder. gpus: number of them, by tensor parallelism. eager: without graphs and compilation.
    options: further ones of vLLM's server. lengths: number of tokens of the prompts. runs: number of prompts sent one
    after the other. requests: number of those sent at once. new_tokens: number that each gets, 2 or more.
    """

    model: str
    dtype: str
    gpus: int
    eager: bool
    options: Sequence[str]
    lengths: Sequence[int]
    runs: int
    requests: int
    new_tokens: int
    seed: int


def measure_serving(servers: Servers, policies: Sequence[str]) -> Iterator[list[ServingRow]]:
    """Measure stock vLLM and then each policy, by a server at a time.

    Yields:
        The rows of one server, a row for each length.

    Raises:
        ModelError: if a server does not start, or does not answer.
    """
    for policy in (None, *policies):
        yield _measured(servers, policy)


def _measured(servers: Servers, policy: str | None) -> list[ServingRow]:
    folder = Path(tempfile.mkdtemp(prefix="deltahalt-bench-"))  # an error names the logs in it
    with serving(servers.model, _options(servers, policy), folder / "server.log") as address:
        rows = [_row(servers, policy, address, tokens, folder) for tokens in servers.lengths]
    shutil.rmtree(folder)
    return rows


def _options(servers: Servers, policy: str | None) -> list[str]:
    """The command-line options of a server. Prompts have nothing in common, so that a prefix cache would only cost."""
    longest = max(servers.lengths) + servers.new_tokens + SPARE
    own = ["--dtype", servers.dtype, "--tensor-parallel-size", str(servers.gpus), "--max-model-len", str(longest)]
    halting = [] if policy is None else ["--additional-config", json.dumps({"deltahalt": {"policy": policy}})]
    eager = ["--enforce-eager"] if servers.eager else []
    return [*own, "--no-enable-prefix-caching", *eager, *servers.options, *halting]


def _row(servers: Servers, policy: str | None, address: str, tokens: int, folder: Path) -> ServingRow:
    each = {"tokens": tokens, "new_tokens": servers.new_tokens}
    alone = send(address, servers.model, Load(servers.runs, at_once=1, seed=servers.seed, **each), folder)
    at_once = Load(servers.requests, at_once=None, seed=servers.seed + 1, **each)
    together = send(address, servers.model, at_once, folder)
    on_gpu = torch.cuda.is_available()
    return ServingRow(
        model=servers.model,
        policy=policy or STOCK,
        mode="eager" if servers.eager else "default",
        vllm=installed(),
        gpus=servers.gpus,
        prompt=tokens,
        runs=servers.runs,
        first_token=alone.first_token,
        new_tokens=servers.new_tokens,
        token=alone.token,
        requests=servers.requests,
        per_second=together.per_second,
        http=True,
        dtype=servers.dtype,
        attention="vLLM",
        machine=machine_name(torch.device("cuda" if on_gpu else "cpu")),
        deltahalt=deltahalt.__version__,
        transformers=transformers.__version__,
        torch=torch.__version__,
    )
