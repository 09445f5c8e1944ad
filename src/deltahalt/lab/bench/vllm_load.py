"""vLLM's load generator, `vllm bench serve`, at a server of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltahalt.errors import ModelError
from deltahalt.lab.bench.vllm_server import reason

# What the command `vllm bench serve` runs. The command itself does not start where vLLM for a CPU is installed.
PROGRAM = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@dataclass(frozen=True)
class Load:
    """Prompts of random tokens, all of one length, that a client sends.

    prompts: number of them. tokens: length of each. new_tokens: number of tokens that each gets. at_once: number of
    them that are served at a time; None for all. seed: draws them.
    """

    prompts: int
    tokens: int
    new_tokens: int
    at_once: int | None
    seed: int


@dataclass(frozen=True)
class Served:
    """What the client saw.

    first_token: seconds from sending a prompt to its first token, median over prompts. token: seconds of each later
    token: mean of each prompt, median over prompts. per_second: number of prompts that were finished per second.
    """

    first_token: float
    token: float
    per_second: float


def send(address: str, model: str, load: Load, folder: Path) -> Served:
    """Send a load to the server at `address`, after one prompt to warm it up, and wait for all answers.

    Raises:
        ModelError: if not all prompts were answered. Files in `folder` have what the generator wrote.
    """
    options = {
        "base-url": address,
        "model": model,
        "dataset-name": "random",
        "random-input-len": load.tokens,
        "random-output-len": load.new_tokens,
        "random-range-ratio": 0,
        "num-prompts": load.prompts,
        "max-concurrency": load.at_once or load.prompts,
        "request-rate": "inf",
        "num-warmups": 1,
        "ready-check-timeout-sec": 0,
        "temperature": 0,
        "seed": load.seed,
        "result-dir": folder,
        "result-filename": "served.json",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    log = folder / "load.log"
    with log.open("wb") as out:
        command = [sys.executable, "-c", PROGRAM, *given, "--ignore-eos", "--save-result", "--disable-tqdm"]
        status = subprocess.run(command, stdout=out, stderr=out, check=False).returncode
    if status:
        raise ModelError(f"`vllm bench serve` ended with status {status}: {reason(log)} (all of it: {log})")
    found: dict[str, Any] = json.loads((folder / "served.json").read_text(encoding="utf-8"))
    if found["completed"] != load.prompts:
        raise ModelError(f"{found['completed']} of {load.prompts} prompts were answered: see {log}")
    return Served(found["median_ttft_ms"] / 1000, found["median_tpot_ms"] / 1000, found["request_throughput"])
