"""Answers on the page: the full model's, and each policy's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deltahalt.answering.ask import ask
from deltahalt.answering.documents import build_prompt, to_device
from deltahalt.lab.viewer.record import AnswerRecord, PromptRecord, record_prompt
from deltahalt.loading.models import LoadedModel
from deltahalt.policies import parse_policy
from helpers.browser import Page
from helpers.viewing import DOCUMENT, POLICIES, QUESTION, shown

FULL = AnswerRecord("The tide is in at noon.", 7, False)
ANSWERS = [FULL, AnswerRecord("The tide is out <b>now</b>", 9, True), AnswerRecord("The tide", 2, False)]


@pytest.fixture
def page(browser: Page, record: PromptRecord, tmp_path: Path) -> Iterator[Page]:
    policies = [replace(policy, answer=answer) for policy, answer in zip(record.policies, ANSWERS, strict=False)]
    yield from shown(browser, replace(record, answer=FULL, policies=policies), tmp_path)


def test_answers_are_those_of_run(loaded_tiny: LoadedModel) -> None:
    record = record_prompt(loaded_tiny, DOCUMENT, QUESTION, POLICIES, max_new_tokens=12)
    tokenizer, config = loaded_tiny.tokenizer, loaded_tiny.model.config
    prompt = to_device(build_prompt(tokenizer, config, DOCUMENT, QUESTION), loaded_tiny.model.device)
    methods = [None, *map(parse_policy, POLICIES)]
    wanted = [ask(loaded_tiny, prompt, method, max_new_tokens=12) for method in methods]
    got = [record.answer, *(policy.answer for policy in record.policies)]
    assert [(answer.text, answer.tokens) for answer in got] == [(answer.text, answer.new_tokens) for answer in wanted]
    assert len({answer.text for answer in got}) > 1
    assert {answer.cut for answer in got} == {True}  # the tiny model has no token that ends an answer


def test_an_answer_that_the_model_ends_is_not_cut(loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (cut,) = record_prompt(loaded_tiny, DOCUMENT, QUESTION, ["dense"], max_new_tokens=1).policies
    ids = loaded_tiny.tokenizer(cut.answer.text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 1
    monkeypatch.setattr(loaded_tiny.model.generation_config, "eos_token_id", ids[0])
    answer = record_prompt(loaded_tiny, DOCUMENT, QUESTION, ["dense"], max_new_tokens=5).answer
    assert (answer.tokens, answer.cut) == (1, False)


def test_answers_can_be_left_out(browser: Page, record: PromptRecord, tmp_path: Path) -> None:
    assert record.answer is None
    assert {policy.answer for policy in record.policies} == {None}
    for page in shown(browser, record, tmp_path):
        assert page.run("byId('answers').getClientRects().length") == 0


def test_the_page_shows_each_answer_and_underlines_what_differs_from_the_full_model_s(page: Page) -> None:
    shown = "[...document.querySelectorAll('#answers tr')].map((row) => [...row.cells].map((e) => e.textContent))"
    full, *policies = page.run(shown)
    assert full == ["full model ", FULL.text, "7 tokens"]
    assert [row[0] for row in policies] == [f"{'ABC'[at]} {POLICIES[at]}" for at in range(3)]
    assert [row[1] for row in policies] == [FULL.text, "The tide is out <b>now</b> \u2026", "The tide"]
    assert policies[0][2] == "as the full model; 7 tokens"
    assert policies[1][2] == "differs where underlined; cut at 9 tokens"
    assert policies[2][2] == "ends earlier; 2 tokens"
    underlined = page.run("[...document.querySelectorAll('#answers .differs')].map((e) => e.textContent)")
    assert underlined == ["", "", "out <b>now</b>", ""]
