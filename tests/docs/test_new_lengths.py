"""The recipe that times prompts of lengths not met before, with cuDNN's attention and without."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deltahalt.lab.rows.base import append_rows, read_rows

POLICY = "dash:start=0,keep_first=2,keep_last=2"


def test_no_run_meets_a_length_again(
    recipe: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lengths, runs = recipe("new_lengths"), []

    def watched(model: Any, prompts: Any, new_tokens: int, **options: Any) -> Any:
        way = "full model" if options["applied"] is None else POLICY
        runs.append((way, torch.backends.cuda.cudnn_sdp_enabled(), prompts["input_ids"].shape[1], new_tokens))
        return generate(model, prompts, new_tokens, **options)

    generate = lengths.generate_timed
    monkeypatch.setattr(lengths, "generate_timed", watched)
    options = ["--shape", "2,32,64,4,2,8", "--lengths", "40,80", "--policies", POLICY]
    options += ["--new-tokens", "3", "--runs", "2"]
    monkeypatch.setattr(sys, "argv", ["new_lengths.py", str(tmp_path / "rows.jsonl"), *options])
    lengths.main()
    measured = [run for run in runs if run[3] == 3]
    for first in (40, 80):
        own = [run for run in measured if first <= run[2] < first + 40]
        read = [width for _, _, width, _ in own]
        assert all(later - earlier >= 3 for earlier, later in pairwise(read))
        ways = [(way, cudnn) for way in ("full model", POLICY) for cudnn in (True, False)]
        assert [run[:2] for run in own] == ways * 2
    rows = read_rows(tmp_path / "rows.jsonl", lengths.NewLengthsRow)
    assert [(row.prompt, row.policy) for row in rows] == [
        (length, policy) for length in (40, 80) for policy in ("full model", POLICY) for _ in range(2)
    ]
    assert all(row.prefill > 0 and row.token > 0 for row in rows)


def test_the_table_sets_both_beside_each_other(
    recipe: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables, row = recipe("page_tables"), recipe("new_lengths").NewLengthsRow
    common = {"model": "m", "prompt": 4096, "new_tokens": 9, "runs": 3, "dtype": "bfloat16", "machine": "GPU"}
    common |= {"deltahalt": "0", "transformers": "5", "torch": "2"}
    rows = [
        row(policy="dash", attention="sdpa, cuDNN last", prefill=0.07, token=0.02, **common),
        row(policy="dash", attention="sdpa", prefill=0.14, token=0.065, **common),
    ]
    append_rows(tmp_path / "few.jsonl", rows)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| 4,096 | `dash` | 0.140 | 0.070 | 65.0 | 20.0 |" in tables.new_lengths_table("few")


def test_a_prefill_alone_has_no_later_token_to_time(
    recipe: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    lengths = recipe("new_lengths")
    monkeypatch.setattr(lengths, "random_model", lambda *_, **__: pytest.fail("built"))
    monkeypatch.setattr(sys, "argv", ["new_lengths.py", str(tmp_path / "rows.jsonl"), "--new-tokens", "1"])
    with pytest.raises(SystemExit, match="2"):
        lengths.main()
    assert "give two --new-tokens or more" in capsys.readouterr().err
