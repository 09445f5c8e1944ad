"""`bench-vllm` runs stock vLLM and each policy as a server under the same load. Stand-ins are in place of both."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deltahalt.lab.bench import vllm_serving
from deltahalt.lab.bench.serving import STOCK, ServingRow
from deltahalt.lab.bench.vllm_load import Load, Served
from deltahalt.lab.rows.base import read_rows

HALTED = "dash:start=4"


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The options of each server that was started."""
    started: list[list[str]] = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # an interruption leaves logs

    @contextmanager
    def serving(model: str, options: list[str], log: Path) -> Iterator[str]:
        assert (model, log.parent.is_dir()) == ("a-model", True)
        started.append(options)
        yield "http://here"

    def send(address: str, model: str, load: Load, folder: Path) -> Served:
        assert (address, model, load.new_tokens) == ("http://here", "a-model", 8)
        quicker = 2 if "--additional-config" in started[-1] else 1
        if load.at_once == 1:
            assert load.prompts == 3
            return Served(load.tokens / 1000 / quicker, 0.005, 99)
        assert (load.prompts, load.at_once) == (6, None)
        return Served(99, 99, 2 * quicker)

    monkeypatch.setattr(vllm_serving, "serving", serving)
    monkeypatch.setattr(vllm_serving, "send", send)
    monkeypatch.setattr(vllm_serving, "installed", lambda: "0.32.0")
    found = importlib.util.find_spec
    monkeypatch.setattr("deltahalt.cli.served.find_spec", lambda name: name == "vllm" or found(name))
    return started


def bench(deltahalt: Callable[..., int], *options: object) -> int:
    counts = ("--new-tokens", 8, "--requests", 6, "--repeats", 3)
    return deltahalt("bench-vllm", "--model", "a-model", "--policies", HALTED, *counts, *options)


def test_stock_and_policies_get_rows_and_a_table(
    servers: list[list[str]], deltahalt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(deltahalt, "--lengths", "100,400", "--rows", tmp_path / "rows.jsonl") == 0
    rows = read_rows(tmp_path / "rows.jsonl", ServingRow)
    shown = [(row.policy, row.prompt, row.first_token, row.token, row.per_second, row.http) for row in rows]
    assert shown == [
        (STOCK, 100, 0.1, 0.005, 2, True),
        (STOCK, 400, 0.4, 0.005, 2, True),
        (HALTED, 100, 0.05, 0.005, 4, True),
        (HALTED, 400, 0.2, 0.005, 4, True),
    ]
    table = capsys.readouterr().out
    assert "2.00x" in table
    assert "GPUs: 1" in table


def test_what_was_measured_before_an_interruption_is_shown(
    servers: list[list[str]],
    deltahalt: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    send = vllm_serving.send

    def interrupted(*given: Any) -> Served:
        if len(servers) == 2:
            raise KeyboardInterrupt
        return send(*given)

    monkeypatch.setattr(vllm_serving, "send", interrupted)
    assert bench(deltahalt, "--lengths", "100") == 130
    assert STOCK in capsys.readouterr().out


@pytest.mark.parametrize("eager", [False, True])
def test_servers_differ_in_what_halting_needs(
    servers: list[list[str]], deltahalt: Callable[..., int], eager: bool
) -> None:
    more = ["--eager"] if eager else []
    assert bench(deltahalt, "--lengths", "100", "--gpus", 2, "--options", "--max-num-seqs 4", *more) == 0
    stock, halted = servers
    assert stock[:6] == ["--dtype", "bfloat16", "--tensor-parallel-size", "2", "--max-model-len", "124"]
    assert stock[6:] == ["--no-enable-prefix-caching", *(["--enforce-eager"] if eager else []), "--max-num-seqs", "4"]
    *common, option, value = halted
    assert (option, json.loads(value)) == ("--additional-config", {"deltahalt": {"policy": HALTED}})
    assert common == stock


def test_where_vllm_is_not_installed_the_error_says_so(
    deltahalt: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deltahalt.cli.served.find_spec", lambda _: None)
    assert bench(deltahalt) == 2
    assert "pip install 'deltahalt[vllm]'" in capsys.readouterr().err
