"""`deltahalt bench-vllm` at real servers of a tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from deltahalt.lab.bench.serving import STOCK, ServingRow
from deltahalt.lab.rows.base import read_rows
from helpers.vllm_engine import HALF, saved

POLICY = f"both-ends:{HALF}"
OPTIONS = "--block-size 32 --num-gpu-blocks-override 64"


def test_servers_are_measured_by_vllms_own_load_generator(
    tmp_path: Path,
    tiny_folder: Path,
    byte_vocabulary: list[str],
    deltahalt: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    saved(model, vocab_size=len(byte_vocabulary), max_position_embeddings=512)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(model)
    counts = ("--lengths", 200, "--new-tokens", 8, "--requests", 4, "--repeats", 3)
    kind = ("--dtype", "float32", "--eager", "--options", OPTIONS, "--rows", rows)
    assert deltahalt("bench-vllm", "--model", model, "--policies", POLICY, *counts, *kind) == 0
    stock, halted = read_rows(rows, ServingRow)
    assert [stock.policy, halted.policy] == [STOCK, POLICY]
    for row in (stock, halted):
        assert 0 < row.first_token < 60
        assert row.token
        assert row.per_second
    assert "GPUs: 1" in capsys.readouterr().out
