"""The counts of a step inside vLLM, and what a request may write; none of it needs vLLM."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahalt import Dash, InputError, PolicyError, UnsupportedError
from deltahalt.integrations.vllm.options import Choice, Settings, placed, request_choice
from deltahalt.integrations.vllm.plan import Plan, Row
from deltahalt.integrations.vllm.shared import Halting
from deltahalt.integrations.vllm.waiting import Waiting
from deltahalt.policies.text import parse_policy

POLICY = Dash(start=1, pruning_ratio=0.5, keep_first=2, keep_last=2)


def request(text: Any, **options: Any) -> Any:
    """What vLLM's SamplingParams hold of a request."""
    return SimpleNamespace(extra_args={"other": 1, "deltahalt": text}, **options)


def row(prompt: int, computed: int, scheduled: int, dropped: int, *, prefix: int = 0, name: str = "one") -> Row:
    return Row(name, POLICY, prompt, prefix, computed, scheduled, dropped)


@st.composite
def rows(draw: Any) -> Row:
    """A chunk of a prompt, of one that is recomputed with generated tokens, or a request that decodes."""
    prompt = draw(st.integers(1, 40))
    prefix = draw(st.integers(0, prompt - 1))
    dropped = draw(st.integers(0, prompt - prefix - 1))
    end = draw(st.integers(1, prompt + 9))
    computed = draw(st.integers(0, end - 1))
    return row(prompt, computed, end - computed, dropped, prefix=prefix)


def places(one: Row) -> list[tuple[int, bool]]:
    """Where deep layers put the tokens of one step, and whether these follow a choice of the policy in that step."""
    run, held = [], 0
    for token in range(one.end):
        settled = not one.dropped or token < one.prefix or token >= one.prompt
        count = 1 if settled else (token == one.prompt - 1) * (one.prompt - one.prefix - one.dropped)
        run += [(held + more, one.halts and token >= one.prefix) for more in range(count) if token >= one.computed]
        held += count
    return run


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # beside vLLM, garbage takes seconds
@given(st.lists(rows(), min_size=1, max_size=6), st.integers(1, 50))
def test_deep_layers_run_each_token_that_stays_once(batch: list[Row], more: int) -> None:
    plan = Plan(batch, max(more, sum(one.before for one in batch)))
    want = [(number, *pair) for number, one in enumerate(batch) for pair in places(one)]
    if len(want) > plan.budget:
        want.sort(key=lambda entry: entry[2])  # what other rows may read comes first
        first = sum(not later for *_, later in want)
        assert not first or plan.pieces[0].starts[-1] == first
    found = [pair for piece in plan.pieces for pair in zip(piece.owners, piece.places, strict=True)]
    assert found == [(number, place) for number, place, _ in want]
    assert plan.whole == (len(plan.pieces) <= 1 and len(want) <= plan.budget)
    for piece in plan.pieces:
        assert 0 < piece.starts[-1] <= plan.budget
        assert piece.queries.tolist() == [piece.owners.tolist().count(number) for number in piece.requests]
        assert piece.lengths.tolist() == [piece.places[stop - 1] + 1 for stop in piece.starts[1:]]
    assert plan.starts[-1] == sum(one.scheduled for one in batch)
    assert plan.halts == any(one.dropped and one.computed < one.prompt for one in batch)


@settings(deadline=None)
@given(one=rows())
def test_a_replay_writes_only_where_nothing_is_or_the_same_token(one: Row) -> None:
    one = replace(one, computed=one.end - 1, scheduled=1)
    place = one.end - 1 - one.decoding.dropped  # in deep layers, of the token that a replayed graph writes
    assert not one.decoding.halts
    assert not one.decoding.waits
    assert place == one.held - 1 or (one.waits and place == one.held < one.end)


def states(tokens: range) -> dict[str, torch.Tensor]:
    """States [n, 1] of these tokens: their positions."""
    return {"update": torch.tensor(tokens)[:, None].float()}


def test_states_of_chunks_become_those_of_the_prompt() -> None:
    waiting = Waiting()
    waiting.add(row(10, 0, 4, 3), states(range(4)))
    waiting.add(row(7, 0, 5, 3, name="two"), states(range(5)))
    waiting.add(row(10, 4, 4, 3), states(range(4, 8)))
    assert len(waiting) == 2
    assert waiting.whole(row(10, 8, 5, 3), states(range(8, 10)))["update"].squeeze(1).tolist() == list(range(10))
    assert waiting.whole(row(7, 0, 7, 3), states(range(7)))["update"].squeeze(1).tolist() == list(range(7))
    waiting.forget(["two", "three"])
    assert len(waiting) == 0


def test_states_of_a_prefix_are_not_kept() -> None:
    waiting = Waiting()
    waiting.add(row(10, 0, 3, 3, prefix=4), states(range(0)))
    assert len(waiting) == 0
    waiting.add(row(10, 3, 3, 3, prefix=4), states(range(4, 6)))
    whole = waiting.whole(row(10, 6, 4, 3, prefix=4), states(range(6, 10)))
    assert whole["update"].squeeze(1).tolist() == list(range(4, 10))


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
    with pytest.raises(UnsupportedError, match=r'write \{"deltahalt": "off"\}'):
        waiting.add(row(prompt, 4, 4, 3), states(range(4, 8)))


def test_what_stays_follows_from_the_length_of_the_prompt() -> None:
    halting = Halting(Settings("dash", 30), POLICY, 64)
    assert [halting.row("one", Choice(POLICY), prompt, 0, prompt).dropped for prompt in (29, 30, 44)] == [0, 13, 20]
    assert [halting.row("one", Choice(POLICY, 14), prompt, 0, prompt).dropped for prompt in (14, 43, 44)] == [0, 0, 13]
    assert halting.row("one", Choice(None), 44, 0, 44).dropped == 0


def test_a_request_chooses_how_its_prompt_halts() -> None:
    assert request_choice(POLICY, request(None)) == Choice(POLICY)
    assert request_choice(POLICY, SimpleNamespace(extra_args=None)) == Choice(POLICY)
    assert request_choice(POLICY, request("off", prompt_logprobs=1)) == Choice(None)
    quarter = parse_policy("dash:start=1,pruning_ratio=0.25,keep_first=2,keep_last=2")
    assert request_choice(POLICY, request("pruning_ratio=0.25")) == Choice(quarter)
    some = Dash(start=1, keep=20, keep_first=2, keep_last=2)
    assert request_choice(POLICY, request("keep=20")) == Choice(some)
    assert request_choice(POLICY, request("prefix=1200")) == Choice(POLICY, 1200)
    assert request_choice(POLICY, request("prefix=1200,keep=20")) == Choice(some, 1200)


@pytest.mark.parametrize("text", ["prefix=-1", "prefix=", "prefix=1e3", "keep=20,prefix=all"])
def test_a_prefix_is_a_number_of_tokens(text: str) -> None:
    with pytest.raises(InputError, match="write a number of tokens, 0 or more, such as prefix=1200"):
        request_choice(POLICY, request(text))


@pytest.mark.parametrize("text", ["", "on", "start=3", "keep=20,start=3", "keep=20+dash", 0.5, {"keep": 20}])
def test_other_options_of_a_request_are_refused(text: Any) -> None:
    with pytest.raises(InputError, match="keep=2048"):
        request_choice(POLICY, request(text))


@pytest.mark.parametrize("text", ["keep=many", "keep=-1", "keep=0", "pruning_ratio=1.5", "pruning_ratio=nan"])
def test_values_of_a_request_are_checked(text: str) -> None:
    with pytest.raises(PolicyError):
        request_choice(POLICY, request(text))


def test_a_request_of_a_warm_up_stays_whole() -> None:
    """It passes no check, and an error would end the engine."""
    halting = Halting(Settings("dash", 0), POLICY, 64)
    assert halting.choice_of(request(None, prompt_logprobs=1)) == Choice(None)


@pytest.mark.parametrize("text", ["dense", "single-input-kv", "dash-frozen", "forecast", "v2drop"])
def test_other_policies_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{text} is not supported in vLLM.*dash-layer.*random, uniform"):
        placed(parse_policy(text), 30)


def test_a_start_becomes_a_layer() -> None:
    assert placed(parse_policy("dash:start=0.4"), 30).start == 12


def test_no_entry_or_off_turns_halting_off() -> None:
    for additional in (None, {}, {"deltahalt": None}, {"deltahalt": {"policy": "off"}}):
        assert Settings.of(additional) is None
    assert Settings.of({"deltahalt": {}}) == Settings("auto", 0)
