"""A server ends with the block that started it, whatever happens in it. A small program stands for vLLM's."""

import os
import signal
import time
from pathlib import Path

import pytest

from deltahalt.errors import ModelError
from deltahalt.lab.bench import vllm_server
from deltahalt.lab.bench.vllm_server import fetched, serving

# It answers every path with its options, and has a process of its own that sleeps.
SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if "--fail" in sys.argv:
    sys.exit("starting\\nValueError: no such model\\nsee above")
child = subprocess.Popen(["sleep", "600"])

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{child.pid} {sys.argv[1:]}".encode())

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


@pytest.fixture(autouse=True)
def _small_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_server.py").write_text(SERVER)
    monkeypatch.setattr(vllm_server, "MODULE", "small_server")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def running(process: int) -> bool:
    """Whether a process is there that has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def ends(process: int) -> bool:
    """Whether a process ends within seconds."""
    return any(not running(process) or time.sleep(0.05) for _ in range(100))


def test_a_server_and_its_processes_end_with_the_block(tmp_path: Path) -> None:
    with serving("a-model", ["--dtype", "float32"], tmp_path / "log") as address:
        child, _, options = fetched(address).partition(" ")
        assert running(int(child))
        assert "'--model', 'a-model'" in options
        assert options.endswith("'--dtype', 'float32']")
    assert ends(int(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_this_process_ends_the_server(tmp_path: Path, number: int) -> None:
    before, children = signal.getsignal(signal.SIGTERM), []

    def signalled() -> None:
        with serving("a-model", [], tmp_path / "log") as address:
            children.append(int(fetched(address).partition(" ")[0]))
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        signalled()
    assert ends(*children)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_ends_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"status 1: ValueError: no such model \(all of it: .*log\)"),
        serving("a-model", ["--fail"], tmp_path / "log"),
    ):
        pytest.fail("it did not start")
