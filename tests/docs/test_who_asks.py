"""The recipe that asks who should choose: its decision is the sweep's, save for who asks."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deltahalt import WindowAttention, halting
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.lab.evaluation.sweep import sweep_sample
from deltahalt.loading.models import LoadedModel
from helpers.methods import named
from helpers.tiny import prompts, tiny

POLICY = WindowAttention(start=1, pruning_ratio=0.5, keep_first=2, keep_last=8, window=8, chunk=4, ahead=3)
TEXT = "window-attention:start=1,pruning_ratio=0.5,keep_first=2,keep_last=8,window=8,chunk=4,ahead=3"
IDS, _ = prompts(60)


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "recipes")
    return importlib.import_module("who_asks")


def kept(model: Any, policy: Any, ids: torch.Tensor = IDS) -> list[int]:
    """Places of the tokens that stay."""
    with torch.no_grad(), halting(model, policy) as halted:
        model(ids, logits_to_keep=1)
    return halted.report.kept[0].tolist()


def test_the_window_s_own_scores_keep_what_the_policy_keeps(asks: ModuleType) -> None:
    model = tiny()
    found = asks.scores(model, POLICY, IDS)
    assert kept(model, asks.Given.like(POLICY, found)) == kept(model, POLICY)
    assert kept(model, asks.Given.like(POLICY, -found)) != kept(model, POLICY)


def test_tokens_behind_the_prompt_ask_beside_the_window(asks: ModuleType) -> None:
    model, said = tiny(), torch.tensor([5, 7, 11])
    found = asks.asked_by(model, POLICY, IDS, said)
    longer = replace(POLICY, window=11, keep_last=11)
    assert torch.equal(found, asks.scores(model, longer, torch.cat([IDS, said[None]], dim=1))[:60])
    assert torch.equal(asks.asked_by(model, POLICY, IDS, said[:0]), asks.scores(model, POLICY, IDS))
    assert not torch.allclose(found, asks.scores(model, POLICY, IDS))


def test_exact_scores_are_those_of_the_same_layers_in_the_full_model(asks: ModuleType) -> None:
    model = tiny()
    alone = [replace(POLICY, start=layer, ahead=0) for layer in range(1, 5)]
    expected = sum(asks.scores(model, policy, IDS) for policy in alone)
    assert torch.allclose(asks.scores(model, asks.exactly(POLICY), IDS), expected, rtol=1e-5)


def test_a_row_for_each_who_asks(asks: ModuleType, loaded_tiny: LoadedModel) -> None:
    sample = Sample("needle", "the sky is blue and the grass is green " * 6, answer=" the grass")
    rows = list(asks.measure(loaded_tiny, sample, [TEXT], TEXT))
    (swept,) = sweep_sample(loaded_tiny, sample, named([TEXT]))
    by_policy = {row.policy: row for row in rows}
    assert by_policy.keys() == {TEXT} | {
        f"{TEXT} {how}" for how in ("asked by a draft", "asked by its answer", "asked by the answer", "scored exactly")
    }
    assert by_policy[TEXT] == swept


def test_a_prompt_of_which_nothing_would_halt_is_left_out(asks: ModuleType, loaded_tiny: LoadedModel) -> None:
    assert not list(asks.measure(loaded_tiny, Sample("needle", "sky", answer=" blue"), [TEXT], TEXT))
