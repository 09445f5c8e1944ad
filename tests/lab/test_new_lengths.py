"""`deltahalt bench --new-lengths`: prompts of lengths not seen before, with cuDNN's attention and without."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt.cli import main
from deltahalt.lab.bench import measure, shape
from deltahalt.lab.bench.new_lengths import NewLengthsRow, markdown
from deltahalt.lab.rows.base import read_rows

POLICY = "dash:start=0,keep_first=2,keep_last=2"
SHAPE = ["bench", "--shape", "2,32,64,4,2,8", "--new-lengths", "--policies", POLICY]


def run(*options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the command."""
    monkeypatch.setattr("sys.argv", ["deltahalt", *SHAPE, *options])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_no_run_meets_a_length_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def watched(model: Any, prompts: Any, new_tokens: int, **options: Any) -> Any:
        name = measure.FULL if options["applied"] is None else POLICY
        runs.append((name, torch.backends.cuda.cudnn_sdp_enabled(), prompts["input_ids"].shape[1], new_tokens))
        return generate(model, prompts, new_tokens, **options)

    generate = measure.generate_timed
    monkeypatch.setattr(measure, "generate_timed", watched)
    file = tmp_path / "rows.jsonl"
    options = ["--lengths", "40,80", "--new-tokens", "3", "--repeats", "2", "--rows", str(file)]
    assert run(*options, monkeypatch=monkeypatch) == 0
    assert "80 tokens" in capsys.readouterr().out
    measured = [run for run in runs if run[3] == 3]
    for first in (40, 80):
        own = [run for run in measured if first <= run[2] < first + 40]
        assert all(later - earlier >= 3 for earlier, later in pairwise(width for _, _, width, _ in own))
        configurations = [(name, cudnn) for name in (measure.FULL, POLICY) for cudnn in (True, False)]
        assert [run[:2] for run in own] == configurations * 2
    assert not {width for *_, width, _ in measured} & {width for *_, width, new in runs if new != 3}
    rows = read_rows(file, NewLengthsRow)
    assert [(row.prompt, row.policy) for row in rows] == [
        (length, policy) for length in (40, 80) for policy in (measure.FULL, POLICY) for _ in range(2)
    ]
    assert all(row.prefill > 0 and row.token > 0 for row in rows)


def test_the_table_sets_both_beside_each_other() -> None:
    common: dict[str, Any] = {"model": "m", "prompt": 4096, "new_tokens": 9, "runs": 3, "dtype": "bfloat16"}
    common |= {"machine": "GPU", "deltahalt": "0", "transformers": "5", "torch": "2", "policy": "dash"}
    rows = [
        NewLengthsRow(attention="sdpa, cuDNN last", prefill=0.07, token=0.02, **common),
        NewLengthsRow(attention="sdpa", prefill=0.14, token=0.065, **common),
    ]
    assert "| m | 4,096 | `dash` | 0.140 | 0.070 | 65.0 | 20.0 |" in markdown(rows)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--new-tokens", "1"], "--new-tokens must be at least 2 (got 1)"),
        (["--lengths", "40,60", "--new-tokens", "3"], "lengths 40 and 60 are 20 tokens apart"),
    ],
)
def test_what_it_cannot_measure_is_refused_before_a_model_is_built(
    options: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shape, "random_model", lambda *_, **__: pytest.fail("built"))
    assert run(*options, monkeypatch=monkeypatch) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
