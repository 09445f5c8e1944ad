"""The bench: what a run costs, how runs are compared, and the rows that come of it."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import InputError, halting
from deltahalt.answering.generation import generate_timed
from deltahalt.lab.bench import measure as bench
from deltahalt.lab.bench.prompts import Prompts, random_prompts, text_prompts
from deltahalt.lab.bench.row import BenchRow, Cost, median_gains, medians
from deltahalt.lab.bench.table import markdown
from deltahalt.lab.rows.base import append_rows, read_rows
from deltahalt.loading.models import LoadedModel
from deltahalt.policies import parse_policy
from helpers.tiny import LAYERS, prompts, tiny

DASH = "dash:start=1,pruning_ratio=0.5,keep_first=4,keep_last=8"
TEXT = "A module is a file of definitions. " * 3


def cost(prefill: float, **others: float | None) -> Cost:
    figures = {"first_token": None, "generation": None, "flops": 1, "kv_bytes": 1, "peak_bytes": None}
    return Cost(**figures | {"total": prefill} | others | {"prefill": prefill})  # type: ignore[arg-type]


def row(**fields: Any) -> BenchRow:
    full, halted = cost(3.0, generation=2.0, total=5.0), cost(2.0, generation=1.0, total=3.0)
    names = ("dtype", "attention", "machine", "deltahalt", "transformers", "torch")
    figures = {"full": full, "halted": halted, "gain": median_gains([full], [halted])}
    sizes = {"prompt": 4096, "batch": 2, "new_tokens": 9, "overhead": 0.01, "share": 0.75, "repeats": 1, "seed": 0}
    return BenchRow(**{"model": "m", "policy": DASH} | figures | sizes | dict.fromkeys(names, "x") | fields)


def measured(model: Any, given: Prompts, **options: Any) -> BenchRow:
    *_, (only,) = bench.measure(model, "tiny", {DASH: parse_policy(DASH)}, given, **{"repeats": 1} | options)
    return only


@pytest.mark.parametrize("policy", [None, DASH])
def test_the_timed_halves_generate_what_generate_does(policy: str | None) -> None:
    model = tiny()
    ids, mask = prompts(40)
    with halting(model, policy or "dense"):
        wanted = model.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False)
        given = generate_timed(model, {"input_ids": ids, "attention_mask": mask}, 7)
    assert torch.equal(given.tokens, wanted[:, 40:])


def test_forced_generation_does_not_end_early() -> None:
    model = tiny()
    inputs = dict(zip(("input_ids", "attention_mask"), prompts(40, 40), strict=True))
    usual = generate_timed(model, inputs, 6, forced=True).tokens
    model.generation_config.eos_token_id = sorted({int(token) for token in usual[:, 1]})
    forced = generate_timed(model, inputs, 6, forced=True).tokens
    assert forced.shape == (2, 6)
    assert not torch.equal(forced, usual)  # the end tokens are ruled out, not overrun


def test_costs_are_those_of_the_layers_lengths() -> None:
    model, batch, length = tiny(), 3, 60
    result = measured(model, random_prompts(model, length, batch, seed=0), new_tokens=4)
    kept = length - (length - 12) // 2
    entry = 2 * 2 * 16 * 4  # K and V, heads, head size, float32
    assert result.full.kv_bytes == batch * LAYERS * length * entry
    assert result.halted.kv_bytes == batch * (2 * length + (LAYERS - 2) * kept) * entry
    assert result.gain.kv_bytes == pytest.approx(LAYERS * length / (2 * length + (LAYERS - 2) * kept))
    with halting(model, DASH) as halted:
        model(random_prompts(model, length, batch, seed=0).read()["input_ids"], logits_to_keep=1)
    assert (result.full.flops, result.halted.flops) == (halted.report.full_flops, halted.report.flops)
    assert result.full.total == pytest.approx(result.full.prefill + result.full.generation)
    assert result.full.peak_bytes is None
    assert result.share == pytest.approx(result.gain.prefill / result.gain.flops)


def test_a_prefill_alone_has_no_generation() -> None:
    model = tiny()
    result = measured(model, random_prompts(model, 30, 1, seed=0), new_tokens=1)
    assert result.full.generation is result.gain.generation is None
    assert result.gain.total == result.gain.prefill


def test_runs_take_turns_and_ratios_are_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gets slower by half and then fast again: only pairs of neighbours say what a policy gains."""
    seen: list[tuple[Any, int]] = []
    drift = iter([9.0] * 4 + [1.0] * 4 + [1.5] * 4 + [0.5] * 4)
    factors = iter([2.0, 2.2, 1.0, 1.6] * 4)

    def run(_: Any, context: Any, __: Prompts, limit: int) -> Cost:
        seen.append((context, limit))
        return cost(next(drift) * next(factors))

    monkeypatch.setattr(bench, "run_once", run)
    model = tiny()
    policies = {name: parse_policy(name) for name in ("dash", "uniform")}
    options: dict[str, Any] = {"new_tokens": 9, "repeats": 3}
    ticks: list[None] = []
    given = random_prompts(model, 30, 1, seed=0)
    *earlier, rows = bench.measure(model, "tiny", policies, given, **options, tick=lambda: ticks.append(None))
    assert [[row.repeats for row in found] for found in (*earlier, rows)] == [[1, 1], [2, 2], [3, 3]]
    assert len(ticks) == bench.runs(len(policies), 3) == 16
    assert [limit for _, limit in seen] == [2, 1, 2, 2] + [9, 1, 9, 9] * 3
    assert len({context for context, _ in seen}) == 4
    assert [found.policy for found in rows] == ["dash", "uniform"]
    assert rows[0].full.prefill == 2.0  # the warm-up is no run
    assert [found.gain.prefill for found in rows] == pytest.approx([2.0, 1.25])
    assert [found.overhead for found in rows] == pytest.approx([0.1, 0.1])


def test_gains_are_medians_of_ratios() -> None:
    full = [cost(2.0, peak_bytes=10), cost(9.0, peak_bytes=10), cost(3.0, peak_bytes=10)]
    halted = [cost(1.0, peak_bytes=5), cost(3.0, peak_bytes=5), cost(2.0, peak_bytes=5)]
    assert medians(full).prefill == 3.0
    assert median_gains(full, halted).prefill == 2.0  # of 2, 3 and 1.5
    assert median_gains(full, halted).peak_bytes == 2.0
    assert median_gains(full, halted).generation is None


def test_random_prompts_are_those_of_their_seed() -> None:
    model = tiny()
    first, again, other = (random_prompts(model, 20, 2, seed).read()["input_ids"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_prompts_of_text_are_its_beginning_however_long(loaded_tiny: LoadedModel) -> None:
    model, tokenizer, _ = loaded_tiny
    ids = tokenizer(TEXT)["input_ids"]
    for length in (50, len(ids) * 2 + 3):
        given = text_prompts(model, tokenizer, TEXT, length, batch=2)
        read = given.read()["input_ids"]
        assert read.tolist() == [(ids * 3)[: given.length]] * 2
        assert length - 2 <= given.length <= length
    with pytest.raises(InputError, match="no tokens"):
        text_prompts(model, tokenizer, "", 50, batch=1)


def test_reading_a_text_is_part_of_the_time(loaded_tiny: LoadedModel) -> None:
    model, tokenizer, _ = loaded_tiny
    result = measured(model, text_prompts(model, tokenizer, TEXT, 60, batch=1), new_tokens=3)
    assert result.full.first_token is not None
    reading = result.full.first_token - result.full.prefill
    assert reading > 0
    assert result.full.total == pytest.approx(reading + result.full.prefill + result.full.generation)
    assert measured(model, random_prompts(model, 60, 1, seed=0)).full.first_token is None


def test_what_the_model_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(max_position_embeddings=32)
    measured(model, random_prompts(model, 28, 1, seed=0), new_tokens=4)
    with pytest.raises(InputError, match="takes 32 tokens"):
        measured(model, random_prompts(model, 29, 1, seed=0), new_tokens=4)

    def too_much(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "generate_timed", too_much)
    with pytest.raises(InputError, match="3 prompts of 20 tokens do not fit"):
        measured(model, random_prompts(model, 20, 3, seed=0))


def test_the_table_has_the_columns_that_there_are_figures_for() -> None:
    whole = markdown([row()])
    assert "| prompt |" in whole
    assert "| 2 x 4,096 |" in whole
    assert "| 3.000 / 2.000 | 1.50x |" in whole
    assert "| 2.00x | 1.67x | 1,642 / 2,737 |" in whole  # generation, total, (2 * 4105) / 5 and / 3
    assert "peak" not in whole
    assert "first token" not in whole
    full, halted = cost(3.0, first_token=4.0, peak_bytes=2e9), cost(2.0, first_token=2.5, peak_bytes=1e9)
    alone = markdown([row(full=full, halted=halted, gain=median_gains([full], [halted]), new_tokens=1)])
    assert "| 1.60x | 1.00x | 2.0 / 1.0 | 2.00x |" in alone  # first token, K/V, peak, memory
    assert not any(head in alone for head in ("generation", "tokens/s", "total"))


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, [row(), row(batch=8)])
    append_rows(path, [row(policy="dense")])
    rows = read_rows(path, BenchRow)
    assert rows == [row(), row(batch=8), row(policy="dense")]
    assert astuple(rows[0].gain)[1] == 1.5
