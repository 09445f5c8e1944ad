"""Late interaction, alone and beside attention, against a reference written out plainly."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from deltahalt import MaxSim, PolicyError, WindowAttention
from helpers.views import HIDDEN, layer_view


def unit(row: list[float]) -> list[float]:
    size = math.sqrt(sum(value * value for value in row))
    return [value / size for value in row]


def match_naively(
    states: torch.Tensor, among: list[bool], window: int, kernel: int, *, power: int = 2, standardize: bool = False
) -> list[float]:
    """Late interaction of states [n, D] written out: for each asker the best match around each token."""
    rows = states.double().tolist()
    columns = [list(column) for column in zip(*rows, strict=True)]
    mean = [sum(column) / len(rows) for column in columns]
    spread = [
        math.sqrt(sum((value - usual) ** 2 for value in column) / len(rows)) if standardize else 1.0
        for column, usual in zip(columns, mean, strict=True)
    ]
    rows = [unit([(value - m) / s for value, m, s in zip(row, mean, spread, strict=True)]) for row in rows]
    scores, half = [0.0] * len(rows), kernel // 2
    for asker in rows[-window:]:
        alike = [sum(a * b for a, b in zip(asker, row, strict=True)) for row in rows]
        found = alike[:-window]
        best = [max(found[max(0, i - half) : i + half + 1], default=0.0) for i in range(len(alike))]
        usual = sum(value for value, free in zip(best, among, strict=True) if free) / sum(among)
        for i, free in enumerate(among):
            scores[i] += max(0.0, best[i] - usual) ** power * free
    return scores


@pytest.mark.parametrize(("window", "kernel"), [(1, 1), (4, 5), (7, 3)])
@pytest.mark.parametrize("boundary", ["block", "attention"])
@pytest.mark.parametrize("form", [{}, {"power": 3}, {"standardize": True}, {"power": 1, "standardize": True}])
def test_max_sim_scores_the_best_matches_around_each_token(
    boundary: Any, window: int, kernel: int, form: dict[str, Any]
) -> None:
    view = layer_view(40)
    if boundary == "attention":
        view = replace(view, hidden_out=None)
    states = view.hidden_in if view.hidden_out is None else view.hidden_out
    among = [3 <= i < 40 - 8 for i in range(40)]
    expected = match_naively(states, among, window, kernel, **form)
    policy = MaxSim(window=window, kernel=kernel, keep_first=3, keep_last=8, boundary=boundary, **form)
    assert policy.score(view).tolist() == pytest.approx(expected, abs=1e-5)


def test_max_sim_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    view, policy = layer_view(40), MaxSim(window=4, kernel=5, keep_first=3, keep_last=8, standardize=True)
    whole = policy.score(view)
    monkeypatch.setattr("deltahalt.policies.late_interaction.COMPARED", 7)
    torch.testing.assert_close(policy.score(view), whole)


def test_max_sim_keeps_the_passage_that_the_question_repeats() -> None:
    view = layer_view(60)
    states = torch.randn(60, HIDDEN, generator=torch.Generator().manual_seed(1))
    states[20:24] = states[-4:]
    policy = MaxSim(window=4, kernel=5, keep_first=0, keep_last=4, pruning_ratio=52 / 56)
    kept = policy.active_set(policy.score(replace(view, hidden_out=states)), view)
    assert set(range(20, 24)) <= set(kept.tolist())


def test_max_sim_does_not_find_those_who_ask() -> None:
    view = layer_view(60)
    policy = MaxSim(window=4, kernel=9, keep_first=4, keep_last=4)
    scores = policy.score(replace(view, hidden_out=torch.randn(60, HIDDEN, generator=torch.Generator().manual_seed(1))))
    assert scores[:4].abs().max() == 0
    assert scores[-4:].abs().max() == 0
    assert scores[-8:-4].max() < 1  # a match with itself would count in full


def test_a_match_among_protected_tokens_speaks_for_what_is_around_it() -> None:
    """A passage may begin before `keep_first`, and what it says come after."""
    view = layer_view(60)
    states = torch.randn(60, HIDDEN, generator=torch.Generator().manual_seed(1))
    states[2:4] = states[-2:]
    scores = MaxSim(window=2, kernel=9, keep_first=4, keep_last=4).score(replace(view, hidden_out=states))
    assert scores[4:6].min() > scores[8:].max()


def test_a_dimension_that_is_the_same_everywhere_tells_no_tokens_apart() -> None:
    """Its deviation is zero, and nothing may be divided by it."""
    states = torch.randn(60, HIDDEN, generator=torch.Generator().manual_seed(1))
    policy = MaxSim(window=4, kernel=5, keep_first=4, keep_last=4, standardize=True)
    without = policy.score(replace(layer_view(60), hidden_out=states[:, 1:]))
    states[:, 0] = 7.0
    torch.testing.assert_close(policy.score(replace(layer_view(60), hidden_out=states)), without)


@pytest.mark.parametrize("standardize", [False, True])
def test_max_sim_of_half_precision_states_does_not_overflow(standardize: bool) -> None:
    states = torch.randn(30, HIDDEN, generator=torch.Generator().manual_seed(1))
    policy = MaxSim(window=4, kernel=5, keep_last=4, keep_first=0, standardize=standardize)
    half = (states * 20_000).clamp(-60_000, 60_000).half()
    expected = policy.score(replace(layer_view(30), hidden_out=half.double()))
    torch.testing.assert_close(policy.score(replace(layer_view(30), hidden_out=half)), expected.float())


def test_max_sim_asks_for_neither_queries_nor_keys_and_takes_a_sliding_layer() -> None:
    def refuse(*_: Any) -> torch.Tensor:
        raise AssertionError("asked")

    view = layer_view(60, window=10)
    policy = MaxSim(window=4)
    assert policy.score(replace(view, queries=refuse, keys=refuse)).equal(policy.score(view))


@pytest.mark.parametrize(
    ("option", "value"), [("window", 0), ("window", 33), ("kernel", 0), ("kernel", 4), ("power", 0)]
)
def test_max_sim_refuses_a_window_that_may_halt_an_even_width_and_no_power(option: str, value: int) -> None:
    with pytest.raises(PolicyError, match=f"{option} (is )?{value}"):
        MaxSim(**{option: value})


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_window_attention_adds_late_interaction_in_shares(weight: float) -> None:
    view = layer_view(60)
    options: dict[str, Any] = {"window": 4, "keep_first": 3, "keep_last": 8}
    attended = WindowAttention(**options).score(view)
    alike = MaxSim(**options).score(view)
    free = slice(3, 60 - 8)
    expected = attended / attended[free].sum() + weight * alike / alike[free].sum()
    torch.testing.assert_close(WindowAttention(**options, similar=weight).score(view), expected)


def test_window_attention_refuses_a_negative_weight() -> None:
    with pytest.raises(PolicyError, match=r"similar is -0\.5"):
        WindowAttention(similar=-0.5)
