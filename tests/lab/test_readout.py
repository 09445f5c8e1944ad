"""`deltahalt bench --readout`: documents per second in batches of different lengths, beside the bound in FLOPs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import Dash, applying, halting, parse_method, parse_policy
from deltahalt.lab.bench import readout as bench
from deltahalt.lab.bench.readout import ReadoutRow, last_states, markdown
from deltahalt.lab.rows.base import read_rows
from deltahalt.loading.models import LoadedModel
from helpers.command import deltahalt
from helpers.oracle import Oracle
from helpers.tiny import FULL, prompts, tiny

POLICY = "dash:start=1,pruning_ratio=0.5,keep_first=4,keep_last=8"


def inputs(*lengths: int) -> dict[str, torch.Tensor]:
    return dict(zip(("input_ids", "attention_mask"), prompts(*lengths), strict=True))


def test_the_last_states_are_the_models_own() -> None:
    model, given = tiny(), inputs(40, 29)
    with torch.no_grad():
        expected = model.model(**given).last_hidden_state[:, -1]
    assert torch.equal(last_states(model, given), expected)
    with applying(model, parse_policy("dense")) as applied:
        assert torch.equal(last_states(model, given, applied), expected)


def test_the_last_states_of_a_policy_are_those_of_its_prefill() -> None:
    model, given = tiny(), inputs(40, 29)
    with applying(model, Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)) as applied:
        states = last_states(model, given, applied)
    assert applied.halted.report.cache_bytes == 0
    oracle = Oracle(model, FULL, applied.halted.report)
    logits = model.lm_head(states.clone())
    assert (oracle(given["input_ids"], given["attention_mask"])[:, -1] - logits).abs().max() < 1e-5


def test_a_policy_that_reads_halted_tokens_and_a_prompt_stage_method_run_too() -> None:
    model, given = tiny(), inputs(40, 29)
    for policy in ("single-input-kv:start=3,keep_last=4", "gemfilter:start=1,keep_first=2,keep_last=3"):
        with applying(model, parse_method(policy)) as applied:
            assert last_states(model, given, applied).isfinite().all()


@pytest.mark.parametrize("batch", [1, 3])
def test_every_run_reads_every_document_in_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny(), []

    def watched(model: Any, given: Any, applied: Any) -> Any:
        read.append((applied is None, given["attention_mask"].sum(dim=1).tolist()))
        return last_states(model, given, applied)

    monkeypatch.setattr(bench, "last_states", watched)
    ticks: list[None] = []
    options: dict[str, Any] = {"repeats": 2, "tick": lambda: ticks.append(None)}
    found = list(bench.measure_readout(model, "tiny", {POLICY: parse_policy(POLICY)}, 80, batch, **options))
    assert len(ticks) == bench.readout_runs(1, [batch], 2)
    runs = [read[start : start + bench.BATCHES] for start in range(0, len(read), bench.BATCHES)]
    assert len(runs) == len(ticks)
    lengths = [sorted(length for _, rows in run for length in rows) for run in runs]
    assert all(own == lengths[0] for own in lengths)
    assert (lengths[0][0], lengths[0][-1], len(lengths[0])) == (40, 80, 4 * batch)
    by_length = [rows for _, rows in runs[0]]
    assert [length for rows in by_length for length in rows] == sorted(lengths[0], reverse=True)
    assert [rows.by_length for (rows,) in found] == ([True] if batch == 1 else [True, False])
    if batch > 1:
        assert [rows for _, rows in runs[-1]] != by_length
    for (row,) in found:
        assert (row.shortest, row.longest, row.documents, row.batch) == (40, 80, 4 * batch, batch)
        assert 1 < row.bound < 2
        assert min(row.full, row.halted, row.gain) > 0


def test_the_bound_is_that_of_the_reports() -> None:
    model = tiny()
    ((row,),) = bench.measure_readout(model, "tiny", {POLICY: parse_policy(POLICY)}, 80, 1, repeats=1)
    full = halted_flops = 0
    for ids in bench._documents(model, 80, 4, 0):
        with torch.no_grad(), halting(model, POLICY) as halted:
            model.model(ids[None])
        full, halted_flops = full + halted.report.full_flops, halted_flops + halted.report.flops
    assert row.bound == pytest.approx(full / halted_flops)


def test_the_command_writes_rows_that_report_reads(
    loaded_tiny: LoadedModel, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    options = ["--readout", "--lengths", "200", "--batch-sizes", "1,2", "--repeats", "1", "--rows", str(file)]
    assert deltahalt("bench", "--model", str(tiny_folder), "--policies", POLICY, *options) == 0
    shown = capsys.readouterr().out
    assert "bound" in shown
    rows = read_rows(file, ReadoutRow)
    assert [(row.batch, row.by_length) for row in rows] == [(1, True), (2, True), (2, False)]
    assert deltahalt("report", str(file)) == 0
    assert capsys.readouterr().out.strip() == markdown(rows)
    assert "| 100 to 200 | 2, by length |" in markdown(rows)
