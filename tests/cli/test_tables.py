"""Tables at 80 columns: every number whole, every policy to be read, and what all lines share said once."""

import io
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from deltahalt.cli import accuracy, bench_modes, embed, observe, shapes
from deltahalt.cli.base import LiteralConsole
from deltahalt.cli.tables import fitted, of_policies, side_by_side
from deltahalt.lab.bench.row import BenchRow, Cost
from deltahalt.lab.evaluation.observe import Observation
from deltahalt.lab.evaluation.readout.summary import EmbedSummary
from helpers.sweep_rows import ROWS

SHARED = "chunk=64,keep_first=256,keep_last=128"
LONG = [f"max-sim:start=2,pruning_ratio={ratio},{SHARED}" for ratio in (0.425, 0.675)]
WIDE = 80


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What the commands print on a terminal of 80 columns, in lines."""
    written = io.StringIO()
    console = LiteralConsole(file=written, width=WIDE)
    for module in (accuracy, bench_modes, embed, observe, shapes):
        monkeypatch.setattr(module, "out", console)
    return lambda: written.getvalue().splitlines()


def lines_of(table: Any) -> list[str]:
    written = io.StringIO()
    Console(file=written, width=WIDE).print(table)
    return written.getvalue().splitlines()


def test_options_that_all_share_are_said_once_below_the_table() -> None:
    lines = lines_of(of_policies([*LONG, "dense"], {"speedup": ["1.71x", "2.43x", "1.00x"]}))
    text = "\n".join(lines)
    assert text.count("keep_last=128") == 1
    assert "pruning_ratio=0.675" in text
    assert any("dense" in line for line in lines)
    assert max(map(len, lines)) <= WIDE


def test_a_single_policy_is_written_whole() -> None:
    lines = lines_of(of_policies(LONG[:1], {"speedup": ["1.71x"]}))
    assert "".join(line.split("\u2502")[1].strip() for line in lines if line.startswith("\u2502")) == LONG[0]


def test_what_all_lines_agree_in_is_in_the_caption() -> None:
    columns = {"task": ["a", "b"], "samples": ["48", "48"], "exact": ["0.5", "0.6"]}
    text = "\n".join(lines_of(fitted(columns, fold="task", common=("samples",))))
    assert "samples: 48" in text
    assert text.count("48") == 1
    apart = "\n".join(lines_of(fitted(columns | {"samples": ["48", "12"]}, fold="task", common=("samples",))))
    assert "48" in apart
    assert "12" in apart


def test_a_long_policy_heads_a_column_whole() -> None:
    policies = [*LONG, "window-attention:start=0.4,pruning_ratio=0.667,heads=max,kernel=1"]
    lines = lines_of(side_by_side("16,384 tokens", policies, {"prefill s": ["8.896 / 4.916"] * 3}))
    assert max(map(len, lines)) <= WIDE
    heads = [line.split("\u2503") for line in lines if line.startswith("\u2503")]
    assert "".join(line[4].strip() for line in heads) == policies[2]


def test_a_sweep_fits(shown: Callable[[], list[str]]) -> None:
    rows = [
        replace(row, policy=policy, nll=row.nll + 10.0)
        for row in ROWS
        for policy in (*LONG, f"window-attention:start=0.4,pruning_ratio=0.667,{SHARED}")
    ]
    accuracy._show(rows)
    _whole(shown(), "exact", "agreement", "+")


def test_a_bench_fits(shown: Callable[[], list[str]]) -> None:
    cost = Cost(12.345, 8.896, 0.123, 9.123, 1.5e12, 1e9, 2e10)
    on = {
        "dtype": "bfloat16",
        "attention": "sdpa",
        "machine": "cpu",
        "deltahalt": "0",
        "transformers": "5",
        "torch": "2",
    }
    row = BenchRow(
        **on,
        model="m",
        policy=LONG[0],
        prompt=65_536,
        batch=4,
        new_tokens=32,
        full=cost,
        halted=cost,
        gain=cost,
        overhead=0.1,
        share=1.0,
        repeats=3,
        seed=0,
    )
    bench_modes._show([row, replace(row, policy=LONG[1]), replace(row, policy="dash")])
    _whole(shown(), "8.896", "12.3")


def test_an_observation_fits(shown: Callable[[], list[str]]) -> None:
    row = Observation(
        sample="s",
        task="group-portrait",
        model="qwen2.5-coder-1.5b",
        prompt=131_072,
        modality="text",
        tokens=131_072,
        relative_delta=[[1]],
        sparsity=[0.1, 0.99],
        delta=[],
        attention=[],
        pearson=0.12,
        spearman=-0.34,
    )
    observe._show([row, replace(row, task="needle", modality="visual")])
    _whole(shown(), "131,072", "+0.12", "-0.34", "0.10 to 0.99")


def test_shapes_fit(shown: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    line = SimpleNamespace(
        policy=LONG[0],
        shape="question-next-turn",
        prompts=12,
        full=0.987,
        score=0.976,
        nll=(0.1234, 0.0567),
        reference_speedup=1.71,
    )
    monkeypatch.setattr("deltahalt.lab.evaluation.shapes.summary.summarize", lambda _: [line, line])
    monkeypatch.setattr("deltahalt.lab.evaluation.shapes.summary.difference", lambda _: "-12.3 ± 4.5")
    shapes._show([])
    _whole(shown(), "98.7", "97.6", "-12.3 ± 4.5", "+0.123 ± 0.057", "1.71x")


def test_embeddings_and_rankings_fit(shown: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"texts": 40, "tokens": 16_384, "overlap": 0.987, "ndcg": 0.9876, "agreement": 0.876}
    speeds = {"per_second": 0.1234, "gain": 1.7, "speedup": 1.71}
    about = {"model": "m", "dtype": "float32", "policy": LONG[0]}
    line = EmbedSummary(**about, ending="", apart=0.9123, cosine=0.9987, **figures, **speeds)  # type: ignore[arg-type]
    for kind in (line, replace(line, ending=None, apart=None, cosine=None)):
        monkeypatch.setattr("deltahalt.lab.evaluation.readout.summary.summarize", lambda _, one=kind: [one, one])
        embed._show([])
    _whole(shown(), "0.9987", "98.7 %", "0.988", "0.123", "1.70x", "1.71x", "0.876", "0.9123")


def _whole(lines: list[str], *numbers: str) -> None:
    """Every line fits, and these stand in one line each."""
    assert max(map(len, lines)) <= WIDE
    for number in numbers:
        assert any(number in line for line in lines), number
