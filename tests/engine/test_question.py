"""A question that is known: found in the prompt by its text or spans, kept active, and looked for by the policy."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache

from deltahalt import BothEnds, Dash, InputError, LayerView, MaxSim, PolicyError, Progressive, UnsupportedError, halting
from deltahalt.engine.question import Spans, Words, question_of
from deltahalt.host.compat import CACHE
from helpers.tiny import prompts, tiny
from helpers.tiny_vision import tiny_vision
from helpers.views import HIDDEN, layer_view

QUESTION = "Who signed the letter?"
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.5, "keep_first": 2, "keep_last": 3}
READING = [BothEnds(**HALF, reach=8), MaxSim(**HALF, window=2, kernel=5)]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Any) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


# Where it stands


@pytest.mark.parametrize(
    ("spans", "places"),
    [([(0, 3)], [0, 1, 2]), ([(-2, 10)], [8, 9]), ([(-3, -1), (1, 2)], [1, 7, 8]), ([(1, 4), (2, 6)], [1, 2, 3, 4, 5])],
)
def test_spans_of_tokens(spans: list[tuple[int, int]], places: list[int]) -> None:
    assert question_of(spans).positions(None, 10).tolist() == places


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (0, 11), (-11, 2), (-1, 0)])
def test_a_span_outside_of_the_prompt_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="is not in a prompt of 10 tokens: give"):
        question_of([span]).positions(None, 10)


@pytest.mark.parametrize("given", [[], 5, [3, 4], [(1, 2, 3)], [(1.0, 2.0)], [("a", "b")], [(True, False)], object()])
def test_what_is_neither_text_nor_spans_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="give its text, a list of texts, or spans of tokens such as"):
        question_of(given)


def test_a_text_needs_a_tokenizer_and_words(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="give the model's tokenizer, too"):
        question_of(QUESTION)
    with pytest.raises(InputError, match="the question is empty"):
        question_of(" \n", tokenizer)


def test_each_prompt_of_a_batch_has_one_of_several_questions(tokenizer: Any) -> None:
    asked = question_of([QUESTION, "When was it sent?"], tokenizer)
    for text in (QUESTION, "When was it sent?"):
        ids = torch.tensor(tokenizer(f"The letter is long. {text} Thanks.", add_special_tokens=False)["input_ids"])
        assert torch.equal(asked.positions(ids, len(ids)), question_of(text, tokenizer).positions(ids, len(ids)))
    both = torch.tensor(tokenizer(f"{QUESTION} When was it sent?", add_special_tokens=False)["input_ids"])
    assert len(asked.positions(both, len(both))) == len(both)
    with pytest.raises(InputError, match="none of the 2 questions is in the prompt: give them word for word"):
        asked.positions(ids[:6], 6)


@pytest.mark.parametrize(
    "text",
    [
        f"{QUESTION}\n\nIt was signed in the spring.",
        f"It was signed in the spring.\n\n{QUESTION}",
        f"In spring. {QUESTION} Answer in one word.",
        f"In spring.\n{QUESTION}\n\nAnswer in one word.",
    ],
    ids=["first", "last", "between", "lines"],
)
@pytest.mark.parametrize("question", [QUESTION, "Why?", f" {QUESTION}\n"])
def test_a_text_is_found_where_it_stands(text: str, question: str, tokenizer: Any) -> None:
    text = text.replace(QUESTION, question.strip())
    ids = torch.tensor(tokenizer(text)["input_ids"])
    places = question_of(question, tokenizer).positions(ids, len(ids))
    found = tokenizer.decode(ids[places])
    assert question.strip() in found
    assert len(found) <= len(question) + 12  # at most a token more at either end


def test_a_text_that_stands_twice_is_found_twice(tokenizer: Any) -> None:
    ids = torch.tensor(tokenizer(f"{QUESTION} It was signed in the spring. {QUESTION}")["input_ids"])
    places = question_of(QUESTION, tokenizer).positions(ids, len(ids))
    assert tokenizer.decode(ids[places]).count(QUESTION) == 2


def test_tokens_at_its_ends_may_have_merged_with_what_stands_beside_it() -> None:
    question = Words("a b c d", ((1, 2, 3, 4), (9, 2, 3, 4), (8, 2, 3, 4)))
    ids = torch.tensor([7, 7, 5, 2, 3, 6, 7])  # "xa" and "dy" are tokens here
    assert question.positions(ids, 7).tolist() == [2, 3, 4, 5]


def test_a_text_that_is_not_there_is_refused(tokenizer: Any) -> None:
    ids = torch.tensor(tokenizer("It was signed in the spring.")["input_ids"])
    with pytest.raises(InputError, match="is not in the prompt: give it word for word"):
        question_of(QUESTION, tokenizer).positions(ids, len(ids))


# What a policy does with it


@dataclass(frozen=True, kw_only=True)
class Seeing(Dash):
    """DASH that notes the question of each view."""

    reads_question = True
    seen: Any = None

    def score(self, view: LayerView) -> torch.Tensor:
        self.seen.append((view.prompt, None if view.question is None else view.question.tolist()))
        return super().score(view)


def test_every_row_has_the_places_of_its_own_prompt() -> None:
    model, seen = tiny(), []
    ids, mask = prompts(40, 29)
    with halting(model, Seeing(**HALF, seen=seen), question=[(4, 7), (-6, -5)]), torch.no_grad():
        model(ids, mask, logits_to_keep=1)
    assert seen == [(40, [4, 5, 6, 34]), (29, [4, 5, 6, 23])]


def test_a_text_is_found_in_rows_with_padding(loaded_tiny: Any) -> None:
    model, tokenizer, seen = loaded_tiny.model, copy.deepcopy(loaded_tiny.tokenizer), []
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    texts = [f"{QUESTION} It was signed in the spring. " + "So it went. " * 9, f"It went. {QUESTION} " + "So. " * 9]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with halting(model, Seeing(**HALF, seen=seen), question=QUESTION, tokenizer=tokenizer), torch.no_grad():
        model(batch["input_ids"], batch["attention_mask"], logits_to_keep=1)
    for (prompt, places), row in zip(seen, batch["input_ids"], strict=True):
        assert QUESTION in tokenizer.decode(row[-prompt:][places])


@pytest.mark.parametrize("policy", READING, ids=lambda policy: policy.name)
def test_a_known_question_finds_its_passage_and_stays(policy: Any) -> None:
    """It stands in the middle, where it would be no query."""
    states = torch.randn(200, HIDDEN, generator=torch.Generator().manual_seed(3))
    states[150:154] = states[60:64]
    view = layer_view(200, hidden_out=states, question=torch.arange(60, 64))
    policy = replace(policy, pruning_ratio=0.9)
    kept = set(policy.active_set(policy.score(view), view).tolist())
    assert kept >= {*range(60, 64), *range(150, 154)}
    unknown = replace(view, question=None)
    assert not kept <= set(policy.active_set(policy.score(unknown), unknown).tolist())


@pytest.mark.parametrize("policy", READING, ids=lambda policy: policy.name)
def test_a_later_stage_finds_the_question_among_active_tokens(policy: Any) -> None:
    view = layer_view(100, positions=torch.arange(0, 100, 2), question=torch.arange(30, 36))
    assert view.active_question is not None
    assert view.active_question.tolist() == [15, 16, 17]
    assert policy.score(view)[15:18].tolist() == [torch.inf] * 3
    whole = layer_view(100, question=torch.arange(30, 36))
    assert policy.score(whole)[30:36].tolist() == [torch.inf] * 6


def test_the_last_tokens_as_the_question_are_what_max_sim_looks_for_anyway() -> None:
    view, policy = layer_view(100), MaxSim(**HALF, window=3, kernel=5)
    known = replace(view, question=torch.arange(97, 100))
    assert torch.equal(policy.score(known)[:97], policy.score(view)[:97])


def test_tokens_of_the_question_stay_in_the_model() -> None:
    model = tiny()
    ids, mask = prompts(40, 29)
    stages = Progressive([BothEnds(**HALF), MaxSim(**HALF | {"start": 3, "pruning_ratio": 0.8}, window=2)])
    with halting(model, stages, question=[(10, 14)]) as halted, torch.no_grad():
        model(ids, mask, logits_to_keep=1)
    assert all({10, 11, 12, 13} <= set(kept.tolist()) for kept in halted.report.kept)


def test_auto_takes_a_question() -> None:
    model = tiny()
    ids = torch.randint(1, 100, (1, 900), generator=torch.Generator().manual_seed(0))
    with halting(model, "auto", question=[(500, 510)]) as halted, torch.no_grad():
        model(ids, logits_to_keep=1)
    assert set(range(500, 510)) <= set(halted.report.kept[0].tolist())
    assert len(halted.report.kept[0]) < 900


# What is refused


def test_a_policy_that_reads_no_question_is_refused() -> None:
    with pytest.raises(PolicyError, match="dash:start=1 does not read the question: leave question out"):
        halting(tiny(), Dash(start=1), question=[(1, 2)]).__enter__()


def test_a_prompt_without_the_question_leaves_the_cache_as_it_was() -> None:
    model = tiny()
    ids, mask = prompts(40)
    cache = DynamicCache(config=model.config)
    block, missing = halting(model, BothEnds(**HALF), question=[(30, 60)]), r"span \(30, 60\) is not in a prompt of 40"
    with block, torch.no_grad(), pytest.raises(InputError, match=missing):
        model(ids, mask, **{CACHE: cache}, logits_to_keep=1)
    assert cache.get_seq_length() == 0


def test_a_prompt_that_stays_whole_is_not_searched() -> None:
    model = tiny()
    ids, mask = prompts(4)
    with halting(model, BothEnds(**HALF), question=[(30, 60)]) as halted, torch.no_grad():
        model(ids, mask, logits_to_keep=1)
    assert halted.report.reason is not None


def test_a_text_is_not_looked_for_among_embeddings(tokenizer: Any) -> None:
    model = tiny_vision()
    embeds = torch.randn(1, 40, model.config.get_text_config().hidden_size)
    block = halting(model, BothEnds(**HALF), question=QUESTION, tokenizer=tokenizer)
    with block, torch.no_grad(), pytest.raises(UnsupportedError, match="give spans of tokens"):
        model(inputs_embeds=embeds, logits_to_keep=1)
    with halting(model, BothEnds(**HALF), question=[(10, 14)]) as halted, torch.no_grad():
        model(inputs_embeds=embeds, logits_to_keep=1)
    assert {10, 11, 12, 13} <= set(halted.report.kept[0].tolist())


def test_spans_are_values() -> None:
    assert question_of([[1, 2]]) == Spans(((1, 2),))
