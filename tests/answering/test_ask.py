"""One answer, and several after one prefill."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, Forecast, Halted, MaxSim, Report, halting
from deltahalt.answering.ask import Answer, ask, ask_each, together
from deltahalt.answering.documents import shared_start
from deltahalt.engine.cache import cache_bytes
from deltahalt.engine.layout import Layout
from deltahalt.host.compat import CACHE
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.registry import AnyMethod
from helpers.tiny import VOCAB

SHARED = torch.randint(1, VOCAB, (1, 60), generator=torch.Generator().manual_seed(0))
RESTS = [torch.randint(1, VOCAB, (1, size), generator=torch.Generator().manual_seed(size)) for size in (5, 1, 9)]
POLICIES = [Dash(start=1, keep_first=4, keep_last=8), Forecast(start=2, keep_last=8)]


def figures(answer: Answer) -> Answer:
    """The answer without the times it took."""
    return replace(answer, prefill_seconds=0.0, decode_seconds=0.0)


def test_the_full_model_answers_each_as_if_it_were_asked_alone(loaded_tiny: LoadedModel) -> None:
    answers = ask_each(loaded_tiny, SHARED, RESTS, None, max_new_tokens=6)
    for rest, answer in zip(RESTS, answers, strict=True):
        whole = torch.cat([SHARED, rest], dim=1)
        alone = ask(loaded_tiny, {"input_ids": whole, "attention_mask": torch.ones_like(whole)}, None, max_new_tokens=6)
        assert (answer.text, answer.new_tokens) == (alone.text, alone.new_tokens)
        assert answer.prompt_tokens == 60


@pytest.mark.parametrize("policy", POLICIES, ids=["dash", "forecast"])
def test_each_question_follows_on_the_same_halted_prefill(policy: AnyMethod, loaded_tiny: LoadedModel) -> None:
    answers = ask_each(loaded_tiny, SHARED, RESTS, policy, max_new_tokens=3)
    assert list(map(figures, answers)) == [
        figures(answer) for rest in RESTS for answer in ask_each(loaded_tiny, SHARED, [rest], policy, max_new_tokens=3)
    ]
    model, cache = loaded_tiny.model, DynamicCache()
    with halting(model, policy) as halted, torch.no_grad():  # type: ignore[arg-type]
        model(SHARED, **{CACHE: cache}, logits_to_keep=1)
        held = cache_bytes(cache)
        tokens = [int(model(RESTS[0], **{CACHE: cache}).logits[0, -1].argmax())]
        while len(tokens) < 3:
            logits = model(torch.tensor([[tokens[-1]]]), **{CACHE: cache}).logits
            tokens.append(int(logits[0, -1].argmax()))
    first = answers[0]
    assert loaded_tiny.tokenizer.decode(tokens).startswith(first.text)
    assert first.cache_bytes == held
    assert first.lengths == tuple(load.attended for load in halted.report.loads[0])


def test_a_long_question_stays_whole(loaded_tiny: LoadedModel) -> None:
    rest = torch.randint(1, VOCAB, (1, 40), generator=torch.Generator().manual_seed(40))
    (answer,) = ask_each(loaded_tiny, SHARED, [rest], POLICIES[0], max_new_tokens=3)
    model, cache = loaded_tiny.model, DynamicCache()
    with halting(model, POLICIES[0]) as halted, torch.no_grad():
        model(SHARED, **{CACHE: cache}, logits_to_keep=1)
        tokens = [int(model(rest, **{CACHE: cache}).logits[0, -1].argmax())]  # all logits: no token halts
        while len(tokens) < 3:
            logits = model(torch.tensor([[tokens[-1]]]), **{CACHE: cache}).logits
            tokens.append(int(logits[0, -1].argmax()))
    assert loaded_tiny.tokenizer.decode(tokens).startswith(answer.text)
    assert answer.lengths == halted.report.lengths[0]


def test_the_question_is_read_where_it_is_found(loaded_tiny: LoadedModel) -> None:
    """A policy that reads it keeps its tokens, also where they stand before the document."""
    policy, tokenizer = MaxSim(start=1, pruning_ratio=0.8, keep_first=0, keep_last=8, window=8), loaded_tiny.tokenizer
    text = f"Who signed? {'It was signed in the spring. ' * 9}"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    prompt, kept = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {}
    for question in ("Who signed?", "Who wrote?", None):
        with _reports() as reports:
            ask(loaded_tiny, prompt, policy, question=question, max_new_tokens=1)
        kept[question] = reports[0].kept[0].tolist()
    assert "Who signed?" in tokenizer.decode(ids[0, kept["Who signed?"]])
    assert kept["Who wrote?"] == kept[None] != kept["Who signed?"]
    ask(loaded_tiny, prompt, POLICIES[0], question="Who signed?", max_new_tokens=1)  # does not read it


@contextmanager
def _reports() -> Iterator[list[Report]]:
    """The report of each prompt that halts in the block."""
    reports: list[Report] = []
    note = Halted._note

    def noted(self: Halted, report: Report, layout: Layout) -> None:
        reports.append(report)
        note(self, report, layout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Halted, "_note", noted)
        yield reports


def test_several_answers_are_shown_as_one() -> None:
    one = Answer("yes", 9, 2, (9, 4), prefill_seconds=1.0, decode_seconds=0.5, flops=7, cache_bytes=8)
    assert together([one]) is one
    both = together([one, replace(one, text="no", new_tokens=3)])
    assert both == replace(one, text="1. yes\n2. no", new_tokens=5, decode_seconds=1.0)


@pytest.mark.parametrize(
    ("one", "other", "shared"), [([1, 2, 3], [1, 2, 4, 5], 2), ([1, 2], [1, 2, 3], 2), ([1], [2], 0), ([], [1], 0)]
)
def test_what_two_prompts_begin_with(one: list[int], other: list[int], shared: int) -> None:
    assert shared_start(torch.tensor(one), torch.tensor(other)) == shared
    assert shared_start(torch.tensor(other), torch.tensor(one)) == shared
