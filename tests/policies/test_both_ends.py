"""BothEnds against a reference written out plainly, and what it is for: a question at either end, short or long."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from deltahalt import BothEnds, PolicyError
from deltahalt.kinds import IMAGE
from deltahalt.policies.layer_view import LayerView
from helpers.views import HIDDEN, layer_view

RUN = 8
SMALL: dict[str, Any] = {"best": 2, "reach": 8, "keep_first": 3, "keep_last": 5}


def score_naively(states: torch.Tensor, among: list[bool], ends: tuple[int, int], best: int, reach: int) -> list[float]:
    """The score of states [n, D] written out. ends: number of query tokens at the start and at the end."""
    (first, last), n = ends, len(states)
    rows = states.double()
    rows = (rows - rows.mean(dim=0)) / rows.std(dim=0, unbiased=False)
    rows = rows / rows.norm(dim=1, keepdim=True)
    query = [*range(first), *range(n - last, n)]
    free = [i for i in range(n) if among[i]]
    above = {}
    for asker in query:
        matches = []
        for i in range(n):
            run = i // RUN
            around = range(max(0, run * RUN - reach), min(n, run * RUN + RUN + reach))
            matches.append(max(-1.0 if j in query else float(rows[asker] @ rows[j]) for j in around))
        usual = sum(matches[i] for i in free) / len(free)
        above[asker] = [max(0.0, value - usual - 0.001) ** 3 for value in matches]
    scores = [0.0] * n
    groups = [range(math.ceil(first / part)) for part in (8, 4, 2, 1)]
    groups += [range(n - math.ceil(last / part), n) for part in (16, 8, 4, 2, 1)]
    for group in filter(None, groups):
        found = [sum(sorted((above[asker][i] for asker in group), reverse=True)[:best]) for i in range(n)]
        for i in free:
            scores[i] += (found[i] * len(free) / sum(found[j] for j in free)) ** 3
    return scores


def random_states(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, HIDDEN, generator=torch.Generator("cpu").manual_seed(seed))


@pytest.mark.parametrize("tokens", [40, 43, 64])
@pytest.mark.parametrize("boundary", ["block", "attention"])
@pytest.mark.parametrize(("reach", "best"), [(0, 1), (8, 2), (16, 1), (16, 8)])
def test_both_ends_scores_the_best_matches_of_each_group_in_shares(
    tokens: int, boundary: Any, reach: int, best: int
) -> None:
    view = layer_view(tokens)
    if boundary == "attention":
        view = replace(view, hidden_out=None)
    states = view.hidden_in if view.hidden_out is None else view.hidden_out
    among = [3 <= i < tokens - 5 for i in range(tokens)]
    policy = BothEnds(**SMALL | {"reach": reach, "best": best}, boundary=boundary)
    expected = score_naively(states, among, (3, 5), best, reach)
    assert policy.score(view).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_both_ends_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    view, policy = layer_view(60), BothEnds(**SMALL)
    whole = policy.score(view)
    for module in ("both_ends", "late_interaction"):
        monkeypatch.setattr(f"deltahalt.policies.{module}.COMPARED", 16)
    torch.testing.assert_close(policy.score(view), whole)


@pytest.mark.parametrize(
    "question", [slice(0, 3), slice(-5, -2), slice(-2, None)], ids=["first", "before-a-tail", "last"]
)
def test_a_question_at_either_end_finds_its_passage(question: slice) -> None:
    """Other query tokens, more than those of the question, find nothing of theirs."""
    states = random_states(200)
    asked = states[question]
    states[96 : 96 + len(asked)] = asked
    view = layer_view(200, hidden_out=states)
    policy = BothEnds(**SMALL, pruning_ratio=0.7)
    assert set(range(96, 104)) <= set(policy.active_set(policy.score(view), view).tolist())


def test_a_question_counts_as_much_as_the_longer_text_at_the_other_end() -> None:
    """The first tokens match in many places, the last two in one."""
    states = random_states(400)
    for place in range(40, 360, 16):
        states[place : place + 40 : 40] = states[:1]
    states[203] = states[-1]
    view = layer_view(400, hidden_out=states)
    policy = BothEnds(**SMALL, pruning_ratio=0.9)
    assert 203 in policy.active_set(policy.score(view), view)


def test_what_one_group_finds_outweighs_what_all_find_a_little() -> None:
    """A question of two tokens lies before fourteen others, of which the last eight resemble seven places a little."""
    states = random_states(800)
    states[403:405] = states[-16:-14]
    for place in range(60, 760, 100):
        states[place : place + 8] += states[-8:]
    view = layer_view(800, hidden_out=states)
    policy = BothEnds(**SMALL | {"keep_last": 16}, pruning_ratio=0.8)
    assert {403, 404} <= set(policy.active_set(policy.score(view), view).tolist())


def test_without_first_tokens_only_the_end_is_the_query() -> None:
    view = layer_view(60)
    assert view.hidden_out is not None
    alone = BothEnds(**SMALL | {"keep_first": 0}).score(view)
    expected = score_naively(view.hidden_out, [i < 55 for i in range(60)], (0, 5), 2, 8)
    assert alone.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_group_that_finds_the_same_everywhere_adds_none_of_its_rounding() -> None:
    """Matches count for all tokens of the prompt, so each token gets the same ones."""
    assert BothEnds(**SMALL | {"reach": 64}).score(layer_view(61)).abs().max() == 0


def test_a_prompt_of_equal_tokens_scores_nothing_and_still_halts() -> None:
    view = layer_view(60, hidden_out=torch.ones(60, HIDDEN))
    policy = BothEnds(**SMALL, pruning_ratio=0.5)
    scores = policy.score(view)
    assert scores.abs().max() == 0
    assert len(policy.active_set(scores, view)) == policy.kept(60)


def test_only_kept_tokens_are_query_tokens_where_the_scope_has_no_text() -> None:
    kinds = torch.zeros(40, dtype=torch.long)
    kinds[2:37] = IMAGE
    view: LayerView = replace(layer_view(40), kinds=kinds)
    assert view.hidden_out is not None
    among = [2 <= i < 37 for i in range(40)]
    policy = BothEnds(scope="visual", reach=8)
    expected = score_naively(view.hidden_out, among, (2, 3), 8, 8)
    assert policy.score(view).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_half_precision_states_do_not_overflow() -> None:
    half = (random_states(60) * 20_000).clamp(-60_000, 60_000).half()
    policy = BothEnds(**SMALL)
    expected = policy.score(layer_view(60, hidden_out=half.double()))
    torch.testing.assert_close(policy.score(layer_view(60, hidden_out=half)), expected.float())


@pytest.mark.parametrize(("option", "value"), [("best", 0), ("reach", -8), ("reach", 60), ("power", 0)])
def test_both_ends_refuses_sizes_that_mean_nothing(option: str, value: int) -> None:
    settings: dict[str, Any] = {option: value}
    with pytest.raises(PolicyError, match=f"{option} is {value}"):
        BothEnds(**settings)
