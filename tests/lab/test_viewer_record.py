"""The record that the page of Fig. 8 is made of, against what halting reports."""

import pytest
import torch

from deltahalt import InputError, halting
from deltahalt.answering.documents import build_prompt
from deltahalt.lab.viewer.record import PromptRecord, pieces, record_prompt
from deltahalt.loading.models import LoadedModel
from helpers.viewing import DASH, DOCUMENT, POLICIES, QUESTION


@pytest.fixture(scope="module")
def ids(loaded_tiny: LoadedModel) -> torch.Tensor:
    prompt = build_prompt(loaded_tiny.tokenizer, loaded_tiny.model.config, DOCUMENT, QUESTION)
    return prompt["input_ids"]


def test_tokens_joined_are_the_prompt(record: PromptRecord, ids: torch.Tensor) -> None:
    assert "".join(record.tokens) == f"{DOCUMENT}\n\n{QUESTION}"
    assert len(record.tokens) == ids.shape[1]
    assert {"\u00e9", "\U0001f600", "", "th"} <= set(record.tokens)


def test_a_prompt_cut_inside_a_character_still_ends(loaded_tiny: LoadedModel) -> None:
    ids = loaded_tiny.tokenizer("a\u00e9", add_special_tokens=False)["input_ids"]
    assert pieces(loaded_tiny.tokenizer, ids[:-1]) == ["a", "\N{REPLACEMENT CHARACTER}"]
    assert pieces(loaded_tiny.tokenizer, []) == []


@pytest.mark.parametrize("policy", range(len(POLICIES)))
def test_who_halts_where_is_what_halting_reports(
    policy: int, record: PromptRecord, loaded_tiny: LoadedModel, ids: torch.Tensor
) -> None:
    with halting(loaded_tiny.model, POLICIES[policy]) as halted, torch.no_grad():
        loaded_tiny.model(ids, logits_to_keep=1)
    own = record.policies[policy]
    assert own.policy == POLICIES[policy]
    assert own.speedup == pytest.approx(halted.report.speedup_bound, abs=1e-4)
    assert [stage.layer for stage in own.stages] == [layer for layer, _ in halted.report.stages]
    for number, (_, (kept,)) in enumerate(halted.report.stages):
        stays = [token for token, stage in enumerate(own.halted) if stage < 0 or stage > number]
        assert stays == kept.tolist()
    assert set(own.halted) == set(range(-1, len(own.stages)))


def test_scores_are_the_policy_s_and_the_cut_is_between_those_that_stay_and_those_that_halt(
    record: PromptRecord, loaded_tiny: LoadedModel, ids: torch.Tensor
) -> None:
    updates: list[torch.Tensor] = []
    hook = loaded_tiny.model.model.layers[1].self_attn.register_forward_hook(
        lambda _m, _a, out: updates.append(out[0][0].norm(dim=-1))
    )
    with torch.no_grad():
        loaded_tiny.model(ids)
    hook.remove()
    own, (stage,) = record.policies[0], record.policies[0].stages
    assert stage.scores == pytest.approx(updates[0].tolist(), rel=1e-4)
    assert stage.ranked is None
    assert stage.scope == [(0, len(record.tokens))]
    assert stage.eligible == [(4, len(record.tokens) - 8)]
    eligible = range(*stage.eligible[0])
    assert min(stage.scores[token] for token in eligible if own.halted[token] < 0) == stage.cut
    assert max(stage.scores[token] for token in eligible if own.halted[token] == 0) <= stage.cut


def test_chunks_are_ranked_by_their_mean_and_later_stages_score_who_is_left(record: PromptRecord) -> None:
    own = record.policies[1]
    first, second = own.stages
    begin, end = first.eligible[0]
    for token in range(begin, end):
        chunk = range(token - (token - begin) % 4, min(token - (token - begin) % 4 + 4, end))
        mean = sum(first.scores[one] for one in chunk) / len(chunk)
        assert first.ranked[token] == pytest.approx(mean, rel=1e-4)
    assert first.ranked[:begin] == first.scores[:begin]
    assert len(second.scores) == sum(stage != 0 for stage in own.halted)
    assert second.eligible == [(2, len(record.tokens) - 8)]


def test_a_policy_that_does_not_rank_has_no_cut(record: PromptRecord) -> None:
    assert record.policies[2].stages[0].cut is None
    assert not record.policies[3].stages


def test_a_question_is_needed(loaded_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="question is empty"):
        record_prompt(loaded_tiny, DOCUMENT, " ", [DASH])


@pytest.mark.parametrize(
    "policy",
    [
        "single-input-kv:start=2,keep_last=8",
        "forecast:start=2,pruning_ratio=1,keep_last=8",
        f"{DASH}+forecast:start=3,pruning_ratio=1,keep_last=8",
    ],
)
def test_halted_tokens_that_serve_kv_are_shown_as_halted(policy: str, loaded_tiny: LoadedModel) -> None:
    shown = record_prompt(loaded_tiny, DOCUMENT, QUESTION, [policy])
    (own,) = shown.policies
    assert own.speedup > 1
    assert set(own.halted) == set(range(-1, len(own.stages)))
    assert set(own.halted[-8:]) == {-1}
