"""`deltahalt bench --decode`: the time of generated tokens, with CUDA graphs and without."""

from pathlib import Path
from typing import Any

import pytest

from deltahalt import Dash
from deltahalt.cli import main
from deltahalt.lab.bench.decode import DecodeRow, decode_ways, markdown
from deltahalt.lab.bench.measure import FULL, NOTHING_HALTED
from deltahalt.lab.rows.base import read_rows
from helpers.recording import recorded_steps
from helpers.tiny import tiny

POLICY = "dash:start=0,keep_first=2,keep_last=2"
COMMAND = ["deltahalt", "bench", "--shape", "2,32,64,4,2,8", "--decode", "--policies", POLICY, "--lengths", "40"]


def run(*options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the command."""
    monkeypatch.setattr("sys.argv", [*COMMAND, *options])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "a CPU"])
def test_every_way_is_measured(
    graphs: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, ran = tmp_path / "rows.jsonl", []
    options = ["--new-tokens", "5", "--repeats", "2", "--batch-sizes", "1,2", "--rows", str(file)]
    if graphs:
        with recorded_steps() as ran:
            assert run(*options, monkeypatch=monkeypatch) == 0
    else:
        assert run(*options, monkeypatch=monkeypatch) == 0
    assert len(ran) == (2 * 2 * 3 * 3 if graphs else 0)  # batches, policies, rounds, tokens after two
    both = [(policy, kind) for policy in (NOTHING_HALTED, POLICY) for kind in (("off", "on") if graphs else ("off",))]
    rows = read_rows(file, DecodeRow)
    assert [(row.batch, row.policy, row.graphs) for row in rows] == [
        (batch, *way) for batch in (1, 2) for way in [(FULL, "plain model"), *both]
    ]
    assert all(row.token > 0 and row.new_tokens == 5 and row.runs == 2 for row in rows)
    assert rows[0].gain == 1
    assert rows[-1].kv_bytes < rows[0].kv_bytes * 2
    assert "2 x 40 tokens" in capsys.readouterr().out
    assert markdown(rows).count("\n") == len(rows) + 1


def test_methods_without_graphs_run_without() -> None:
    with recorded_steps():
        assert len(decode_ways(tiny(), {"dash": Dash()})) == 5
        assert len(decode_ways(tiny("llama", "eager"), {"dash": Dash()})) == 3


def test_an_answer_of_one_token_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--new-tokens", "1", monkeypatch=monkeypatch) == 2
    shown: Any = capsys.readouterr()
    assert "--new-tokens must be at least 2" in " ".join((shown.out + shown.err).split())
