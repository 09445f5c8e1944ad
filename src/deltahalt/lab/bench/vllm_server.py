"""vLLM's OpenAI-compatible server in a process of its own, which ends with the block that started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from deltahalt.errors import ModelError

MODULE = "vllm.entrypoints.openai.api_server"
HOST = "127.0.0.1"
SECONDS_TO_START, SECONDS_TO_STOP = 1800, 30
TERMINATED = 128 + signal.SIGTERM  # the exit status that shells give after this signal


@contextmanager
def serving(model: str, options: Sequence[str], log: Path) -> Iterator[str]:
    """Serve a model by vLLM with these command-line options, until the block ends.

    Yields:
        The server's address, such as `http://127.0.0.1:8000`, once it answers.

    Raises:
        ModelError: if the server ends, or does not answer within half an hour. The file `log` has what it wrote.
    """
    address = f"http://{HOST}:{_free_port()}"
    command = [sys.executable, "-m", MODULE, "--model", model, "--host", HOST, "--port", address.rpartition(":")[2]]
    with log.open("wb") as out, _ended_by_signals():
        # In a session of its own, Ctrl-C does not reach the server, and all of its processes can be ended at once.
        server = subprocess.Popen([*command, *options], stdout=out, stderr=out, start_new_session=True)
        try:
            _wait(server, address, log)
            yield address
        finally:
            _stop(server)


def fetched(url: str) -> str:
    """What a local server gives at this address. Raises URLError if it does not answer with status 200."""
    with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        if server.poll() is not None:
            raise ModelError(f"vLLM's server ended with status {server.returncode}: {reason(log)} (all of it: {log})")
        with suppress(URLError, OSError):
            fetched(f"{address}/health")
            return
        time.sleep(0.2)
    raise ModelError(f"vLLM's server did not answer within {SECONDS_TO_START} seconds: see {log}")


def reason(log: Path) -> str:
    """The first line that names an error, or the last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "Error: " in line or "error: " in line]
    return [*named[:1], *lines[-1:], "it wrote nothing"][0].strip()


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does, so that the server ends first."""

    def leave(*_: Any) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
