"""The counts of a step inside vLLM, and what a request may write; none of it needs vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahalt import Dash, InputError, PolicyError, UnsupportedError
from deltahalt.integrations.vllm.options import Settings, placed, request_policy
from deltahalt.integrations.vllm.plan import Plan, Row
from deltahalt.integrations.vllm.shared import Halting, log
from deltahalt.policies.text import parse_policy

POLICY = Dash(start=1, pruning_ratio=0.5, keep_first=2, keep_last=2)


def request(text: Any, **options: Any) -> Any:
    """What vLLM's SamplingParams hold of a request."""
    return SimpleNamespace(extra_args={"other": 1, "deltahalt": text}, **options)


@st.composite
def rows(draw: Any) -> Row:
    """A new prompt, one that is recomputed with generated tokens, or a request that decodes."""
    prompt = draw(st.integers(1, 40))
    dropped = draw(st.integers(0, prompt - 1))
    generated = draw(st.integers(0, 9))
    decodes = generated > 0 and draw(st.booleans())
    computed = prompt + generated - 1 if decodes else 0
    return Row(POLICY, prompt, computed, prompt + generated - computed, dropped)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # beside vLLM, garbage takes seconds
@given(st.lists(rows(), min_size=1, max_size=6))
def test_counts_are_those_of_requests_run_one_by_one(batch: list[Row]) -> None:
    plan, owners, places, lengths = Plan(batch), [], [], []
    for number, row in enumerate(batch):
        held = [] if row.computed == 0 else list(range(row.computed - row.dropped))
        new = row.scheduled - row.dropped if row.computed == 0 else 1
        owners += [number] * new
        places += range(len(held), len(held) + new)
        lengths.append(len(held) + new)
    assert plan.owners.tolist() == owners
    assert plan.places.tolist() == places
    assert plan.lengths.tolist() == lengths
    assert plan.queries.tolist() == [owners.count(number) for number in range(len(batch))]
    assert plan.starts[-1] == sum(row.scheduled for row in batch)
    assert plan.halts == any(row.dropped and not row.computed for row in batch)


@pytest.mark.parametrize(("computed", "scheduled"), [(0, 20), (20, 20), (10, 40)])
def test_a_part_of_a_prompt_is_refused_where_tokens_halt(computed: int, scheduled: int) -> None:
    Plan([Row(None, 40, computed, scheduled, 0)])
    with pytest.raises(UnsupportedError, match="set --no-enable-chunked-prefill"):
        Plan([Row(POLICY, 40, computed, scheduled, 7)])


def test_what_stays_follows_from_the_length_of_the_prompt() -> None:
    halting = Halting(Settings("dash", 30), POLICY)
    assert [halting.row(POLICY, prompt, 0, prompt).dropped for prompt in (29, 30, 44)] == [0, 13, 20]
    assert halting.row(None, 44, 0, 44).dropped == 0


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
    assert Halting(Settings("dash", 0), POLICY).policy_of(request("ratio=1")) is None
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
