"""`deltahalt bench --piece-tokens`: prompts in pieces, beside the plain model where it fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt.lab.bench import measure
from deltahalt.lab.bench.long_prompts import LongPromptRow, markdown
from deltahalt.lab.rows.base import read_rows

POLICY = "dash:start=0,keep_first=2,keep_last=2"
BENCH = ["bench", "--shape", "2,32,64,4,2,8", "--policies", f"dense {POLICY}", "--piece-tokens", "16"]
MEASURE = ["--lengths", "40,80", "--new-tokens", "3", "--repeats", "2"]


def test_a_row_of_each_policy_and_length(deltahalt: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert deltahalt(*BENCH, *MEASURE, "--rows", file) == 0
    rows = read_rows(file, LongPromptRow)
    policies = {measure.FULL: None, "dense": 16, POLICY: 16}
    assert [(row.prompt, row.policy, row.piece_tokens) for row in rows] == [
        (length, policy, size) for length in (40, 80) for policy, size in policies.items()
    ]
    assert all(row.runs == 2 and row.prefill and row.token for row in rows)


def test_what_does_not_fit_is_noted(
    deltahalt: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, generate = [], measure.generate_timed

    def in_too_little_memory(model: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        runs.append(prompts["input_ids"].shape[1])
        if options["applied"] is None and runs[-1] == 80:
            raise torch.OutOfMemoryError
        return generate(model, prompts, *args, **options)

    monkeypatch.setattr(measure, "generate_timed", in_too_little_memory)
    file = tmp_path / "rows.jsonl"
    assert deltahalt(*BENCH, *MEASURE, "--rows", file) == 0
    rows = read_rows(file, LongPromptRow)
    assert [row.prefill is None for row in rows] == [False, False, False, True, False, False]
    assert runs.count(80) == 1 + 2 * 2  # the plain model is not tried again
    assert "out of memory" in markdown(rows)
