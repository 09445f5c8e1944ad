"""The counts of a step inside vLLM, and what a request may write; none of it needs vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahalt import Dash, InputError, PolicyError, UnsupportedError
from deltahalt.integrations.vllm.options import Settings, placed, request_policy
from deltahalt.integrations.vllm.plan import Plan, Row
from deltahalt.integrations.vllm.shared import Halting, log
from deltahalt.integrations.vllm.waiting import Waiting
from deltahalt.policies.text import parse_policy

POLICY = Dash(start=1, pruning_ratio=0.5, keep_first=2, keep_last=2)


def request(text: Any, **options: Any) -> Any:
    """What vLLM's SamplingParams hold of a request."""
    return SimpleNamespace(extra_args={"other": 1, "deltahalt": text}, **options)


def row(prompt: int, computed: int, scheduled: int, dropped: int, name: str = "one") -> Row:
    return Row(name, POLICY, prompt, computed, scheduled, dropped)


@st.composite
def rows(draw: Any) -> Row:
    """A chunk of a prompt, of one that is recomputed with generated tokens, or a request that decodes."""
    prompt = draw(st.integers(1, 40))
    dropped = draw(st.integers(0, prompt - 1))
    end = draw(st.integers(1, prompt + 9))
    computed = draw(st.integers(0, end - 1))
    return row(prompt, computed, end - computed, dropped)


def in_deep_layers(one: Row, tokens: int) -> int:
    """Number of a request's first `tokens` tokens that deep layers hold, when these have run."""
    return 0 if one.dropped and tokens < one.prompt else tokens - one.dropped


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # beside vLLM, garbage takes seconds
@given(st.lists(rows(), min_size=1, max_size=6), st.integers(1, 50))
def test_deep_layers_run_each_token_that_stays_once(batch: list[Row], budget: int) -> None:
    plan = Plan(batch, budget)
    want = [
        (number, place)
        for number, one in enumerate(batch)
        for place in range(in_deep_layers(one, one.computed), in_deep_layers(one, one.end))
    ]
    assert [pair for piece in plan.pieces for pair in zip(piece.owners, piece.places, strict=True)] == want
    assert all(piece.starts[-1] == budget for piece in plan.pieces[:-1])
    for piece in plan.pieces:
        assert 0 < piece.starts[-1] <= budget
        assert piece.queries.tolist() == [piece.owners.tolist().count(number) for number in piece.requests]
        assert piece.lengths.tolist() == [piece.places[stop - 1] + 1 for stop in piece.starts[1:]]
    assert plan.starts[-1] == sum(one.scheduled for one in batch)
    assert plan.halts == any(one.dropped and one.computed < one.prompt for one in batch)


def states(tokens: range) -> dict[str, torch.Tensor]:
    """States [n, 1] of these tokens: their positions."""
    return {"update": torch.tensor(tokens)[:, None].float()}


def test_states_of_chunks_become_those_of_the_prompt() -> None:
    waiting = Waiting()
    waiting.add(row(10, 0, 4, 3), states(range(4)))
    waiting.add(row(7, 0, 5, 3, "two"), states(range(5)))
    waiting.add(row(10, 4, 4, 3), states(range(4, 8)))
    assert len(waiting) == 2
    assert waiting.whole(row(10, 8, 5, 3), states(range(8, 10)))["update"].squeeze(1).tolist() == list(range(10))
    assert waiting.whole(row(7, 0, 7, 3), states(range(7)))["update"].squeeze(1).tolist() == list(range(7))
    waiting.forget(["two", "three"])
    assert len(waiting) == 0


def test_a_prompt_that_starts_again_replaces_its_states() -> None:
    waiting = Waiting()
    waiting.add(row(10, 0, 8, 3), states(range(8)))
    waiting.add(row(10, 0, 4, 3), states(range(4)))
    with pytest.raises(UnsupportedError, match="tokens 8 to 10 of a prompt of 10"):
        waiting.whole(row(10, 8, 2, 3), states(range(8, 10)))
    assert waiting.whole(row(10, 4, 6, 3), states(range(4, 10)))["update"].squeeze(1).tolist() == list(range(10))


@pytest.mark.parametrize("prompt", [10, 12])
def test_a_prompt_whose_start_is_not_there_is_refused(prompt: int) -> None:
    waiting = Waiting()
    if prompt == 12:  # it was shorter
        waiting.add(row(10, 0, 4, 3), states(range(4)))
    with pytest.raises(UnsupportedError, match="set --no-enable-prefix-caching"):
        waiting.add(row(prompt, 4, 4, 3), states(range(4, 8)))


def test_what_stays_follows_from_the_length_of_the_prompt() -> None:
    halting = Halting(Settings("dash", 30), POLICY, 64)
    assert [halting.row("one", POLICY, prompt, 0, prompt).dropped for prompt in (29, 30, 44)] == [0, 13, 20]
    assert halting.row("one", None, 44, 0, 44).dropped == 0


def test_a_request_chooses_how_much_of_its_prompt_stays() -> None:
    assert request_policy(POLICY, request(None)) is POLICY
    assert request_policy(POLICY, SimpleNamespace(extra_args=None)) is POLICY
    assert request_policy(POLICY, request("off", prompt_logprobs=1)) is None
    quarter = parse_policy("dash:start=1,pruning_ratio=0.25,keep_first=2,keep_last=2")
    assert request_policy(POLICY, request("pruning_ratio=0.25")) == quarter
    assert request_policy(POLICY, request("keep=20")) == Dash(start=1, keep=20, keep_first=2, keep_last=2)


@pytest.mark.parametrize("text", ["", "on", "start=3", "keep=20,start=3", "keep=20+dash", 0.5, {"keep": 20}])
def test_other_options_of_a_request_are_refused(text: Any) -> None:
    with pytest.raises(InputError, match="keep=2048"):
        request_policy(POLICY, request(text))


@pytest.mark.parametrize("text", ["keep=many", "keep=-1", "keep=0", "pruning_ratio=1.5", "pruning_ratio=nan"])
def test_values_of_a_request_are_checked(text: str) -> None:
    with pytest.raises(PolicyError):
        request_policy(POLICY, request(text))


def test_a_request_that_is_not_refused_before_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lambda line, *parts: lines.append(line % parts))
    assert Halting(Settings("dash", 0), POLICY, 64).policy_of(request("ratio=1")) is None
    assert "a prompt stays whole, since its request does not work with halting: deltahalt is 'ratio=1'" in lines[0]


@pytest.mark.parametrize("text", ["dense", "key-norm", "window-attention", "dash-frozen", "forecast", "v2drop"])
def test_policies_that_read_more_than_states_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{text} is not supported in vLLM.*dash, dash-layer, random, uniform"):
        placed(parse_policy(text), 30)


def test_a_start_becomes_a_layer() -> None:
    assert placed(parse_policy("dash:start=0.4"), 30).start == 12


def test_no_entry_or_off_turns_halting_off() -> None:
    for additional in (None, {}, {"deltahalt": None}, {"deltahalt": {"policy": "off"}}):
        assert Settings.of(additional) is None
    assert Settings.of({"deltahalt": {}}) == Settings("auto", 0)
