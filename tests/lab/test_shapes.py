"""Prompts of shapes: what stands where, that seeds decide, and that the two halves have nothing in common."""

import json
import re
import string
from itertools import pairwise
from pathlib import Path

import pytest

from deltahalt import InputError
from deltahalt.lab.evaluation.samples import load_samples, shape_samples
from deltahalt.lab.evaluation.shapes import (
    SHAPES,
    ShapedPrompt,
    calibration_seeds,
    held_out_seeds,
    make_prompt,
    make_prompts,
    shape_names,
)
from deltahalt.lab.evaluation.shapes import sources as texts
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.names import person, place, words
from deltahalt.lab.evaluation.shapes.other_words import PAIRS
from deltahalt.lab.evaluation.shapes.scorers import Both, Counts, Names, NamesAll, Quotes
from deltahalt.lab.evaluation.shapes.source import functions
from deltahalt.lab.evaluation.shapes.tails import STYLES

SEEDS, TOKENS = range(6), 1_500
ONE_FACT = words(
    "question-last question-first question-both question-between question-next-turn third-turn style-after "
    "step-by-step german-fact chinese-fact"
)
WITHOUT_QUESTION = {"code-to-go-on", "code-alone", "continuation"}
SMALL_WORDS = words(
    "the a an of in on at to by for is was were has have had are which who what where when how much many that no does "
    "do did whose it its as there with from and"
)

every_shape = pytest.mark.parametrize("shape", SHAPES)


def prompts_of(shape: str) -> list[ShapedPrompt]:
    return [make_prompt(shape, seed, TOKENS) for seed in SEEDS]


@every_shape
def test_the_same_seed_gives_the_same_prompt(shape: str) -> None:
    for seed in SEEDS:
        assert make_prompt(shape, seed, TOKENS) == make_prompt(shape, seed, TOKENS)


@every_shape
def test_another_seed_gives_another_prompt(shape: str) -> None:
    made = prompts_of(shape)
    assert len({prompt.text for prompt in made}) == len(made)
    assert len({prompt.answer for prompt in made}) > 1


@every_shape
@pytest.mark.parametrize("tokens", [1_000, 2_000, 10_000])
def test_a_prompt_is_about_as_long_as_asked_for(shape: str, tokens: int) -> None:
    density = {"german-fact": 0.75, "chinese-fact": 0.9}.get(shape, 1.0)
    for seed in (0, 1):
        assert 0.6 < count_tokens(make_prompt(shape, seed, tokens).text) / (tokens * density) < 1.3


@every_shape
def test_the_gold_answer_is_right_and_no_answer_is_wrong(shape: str) -> None:
    for prompt in prompts_of(shape):
        assert prompt.answer.strip()
        if prompt.scorer is not None:
            assert prompt.scorer(prompt.answer) == 1
            assert prompt.scorer("") == 0
            assert prompt.scorer("The text above does not say anything about that.") == 0


@every_shape
def test_another_seed_s_answer_is_wrong(shape: str) -> None:
    made = prompts_of(shape)
    for prompt, other in pairwise(made):
        if prompt.scorer is not None and prompt.answer != other.answer:
            assert prompt.scorer(other.answer) < 0.5


@every_shape
def test_the_question_is_in_the_prompt_and_the_answer_is_not_put_into_the_model_s_mouth(shape: str) -> None:
    for prompt in prompts_of(shape):
        assert prompt.messages[-1]["role"] == "user"
        assert {message["role"] for message in prompt.messages} <= {"user", "assistant", "system"}
        assert bool(prompt.question) == (shape not in WITHOUT_QUESTION)
        assert prompt.question in prompt.text


@pytest.mark.parametrize("shape", ONE_FACT)
def test_the_fact_stands_in_the_prompt_once(shape: str) -> None:
    for prompt in prompts_of(shape):
        assert prompt.text.count(prompt.answer) == 1


@pytest.mark.parametrize("shape", ["two-facts", "variable-chain", "json-extraction", "table-extraction", "other-words"])
def test_the_value_that_is_asked_for_stands_in_the_prompt_once(shape: str) -> None:
    for prompt in prompts_of(shape):
        assert prompt.text.count(prompt.answer.removesuffix(".")) == 1


@pytest.mark.parametrize("shape", ["question-last", "two-facts", "other-words", "german-fact", "chinese-fact"])
def test_what_others_have_is_a_wrong_answer(shape: str) -> None:
    for prompt in prompts_of(shape):
        assert isinstance(prompt.scorer, Names)
        assert prompt.scorer.others
        for other in prompt.scorer.others:
            assert other in prompt.text
            assert prompt.scorer(f"It is {other}.") == 0
            assert prompt.scorer(f"{prompt.answer} It is {other}.") == 0


def test_where_the_question_stands() -> None:
    for seed in SEEDS:
        last, first, both, between = (
            make_prompt(f"question-{where}", seed, TOKENS) for where in ("last", "first", "both", "between")
        )
        assert last.text.endswith(last.question)
        assert first.text.startswith(first.question)
        assert first.text.count(first.question) == 1
        assert both.text.startswith(both.question)
        assert both.text.endswith(both.question)
        assert 0.2 < between.text.index(between.question) / len(between.text) < 0.8


def test_a_question_of_the_next_turn_is_hidden_while_the_document_is_read() -> None:
    prompt = make_prompt("question-next-turn", 1, TOKENS)
    shown = prompt.messages[: -prompt.hidden]
    assert [message["role"] for message in shown] == ["user"]
    assert prompt.question not in shown[0]["content"]
    assert prompt.answer in shown[0]["content"]
    assert all(make_prompt(shape, 1, TOKENS).hidden == 0 for shape in SHAPES if shape != "question-next-turn")


def test_the_third_turn_asks_after_an_answered_second() -> None:
    prompt = make_prompt("third-turn", 1, TOKENS)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert prompt.answer in prompt.messages[0]["content"]
    assert prompt.scorer is not None
    assert prompt.scorer(prompt.messages[3]["content"]) == 0


def test_instructions_after_the_question_are_long() -> None:
    assert all(len(style.split()) >= 45 for style in STYLES)
    for prompt in prompts_of("style-after"):
        assert len(prompt.text.split(prompt.question)[1].split()) >= 45


def test_a_rule_of_the_system_prompt_has_to_be_obeyed() -> None:
    for prompt in prompts_of("system-rule"):
        assert isinstance(prompt.scorer, Both)
        assert prompt.messages[0]["role"] == "system"
        fact = prompt.scorer.fact
        assert isinstance(fact, Names)
        assert prompt.scorer.fact(f"It is {fact.wanted}, as the text says.") == 1
        assert prompt.scorer(f"It is {fact.wanted}, as the text says.") == 0


def test_one_tool_of_many_fits() -> None:
    for prompt in prompts_of("tool-choice"):
        described = prompt.text[prompt.text.index("[\n") : prompt.text.index("\n]") + 2]
        tools = [tool["name"] for tool in json.loads(described)]
        call = json.loads(prompt.answer)
        assert len(tools) == len(set(tools)) > 5
        assert call["name"] in tools
        assert prompt.scorer is not None
        for name in set(tools) - {call["name"]}:
            assert prompt.scorer(json.dumps(call | {"name": name})) == 0
        assert prompt.scorer(json.dumps(call | {"arguments": {"reference": "AA-0000"}})) == 0
        assert prompt.scorer(f"```json\n{json.dumps(call, indent=2)}\n```") == 1


def test_other_words_are_other_words() -> None:
    def stems(text: str) -> set[str]:
        found = re.sub(r"\{\d\}", " ", text.lower()).translate(str.maketrans("", "", string.punctuation)).split()
        return {word.removesuffix("s")[:6] for word in found if word not in SMALL_WORDS}

    for sentence, question, _ in PAIRS:
        assert not stems(sentence) & stems(question), (sentence, question)
    for prompt in prompts_of("other-words"):
        fact = next(line for line in prompt.text.split("\n\n") if prompt.answer.removesuffix(".") in line)
        assert not stems(fact) & stems(prompt.question)


def test_joined_facts_stand_apart_and_neither_has_both_ends() -> None:
    for prompt in prompts_of("two-facts"):
        answer = prompt.answer.removesuffix(".")
        (holding,) = (line for line in prompt.text.split("\n\n") if answer in line)
        subjects = set(re.findall(r"[A-Z]\w+ [A-Z]\w+|[A-Z]\w{4,}", prompt.question.removeprefix("In which")))
        assert not any(subject in holding for subject in subjects - {"What", "Where"})


def test_a_chain_of_variables_leads_to_the_answer() -> None:
    for prompt in prompts_of("variable-chain"):
        values: dict[str, str] = {}
        for name, value in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", prompt.text, re.MULTILINE):
            values[name] = values.get(value, value)
        asked = re.findall(r"VAR (\w+)\?", prompt.question)[0]
        assert f"{values[asked]}." == prompt.answer
        assert f"VAR {asked} = VAR " in prompt.text


def test_what_is_to_be_counted_stands_as_often_as_the_answer_says() -> None:
    for prompt in prompts_of("counting"):
        town = re.findall(r"for (\w+)\?", prompt.question)[0]
        assert len(re.findall(rf"^Delivery note \d+: \w+ for {town}\.$", prompt.text, re.MULTILINE)) == int(
            prompt.answer[0]
        )


def test_quoted_lines_are_a_function_of_about_twenty_lines() -> None:
    for prompt in prompts_of("quote-lines"):
        assert isinstance(prompt.scorer, Quotes)
        lines = prompt.scorer.lines
        assert 14 <= len(lines) <= 24
        assert prompt.text.count("\n".join(lines)) == 1
        half = "\n".join(lines[: len(lines) // 2])
        assert 0.3 < prompt.scorer(half) < 0.7
        assert prompt.limit >= count_tokens(prompt.answer)


def test_a_function_whose_name_is_not_its_own_is_not_quoted() -> None:
    body = "".join(f"    x{number} = {number}\n" for number in range(16))
    once, twice = f"def once():\n{body}", f"def twice():\n{body}"
    assert [name for _, _, name in functions(f"{once}{twice}")] == ["once", "twice"]
    assert [name for _, _, name in functions(f"{once}{twice}{twice}")] == ["once"]


@pytest.mark.parametrize("shape", ["code-to-go-on", "code-alone", "continuation"])
def test_what_comes_next_is_not_in_the_prompt(shape: str) -> None:
    for prompt in prompts_of(shape):
        assert prompt.scorer is None
        assert prompt.answer not in prompt.text
        assert prompt.chat == (shape == "code-to-go-on")


def test_a_summary_names_every_decision_once() -> None:
    for prompt in prompts_of("minutes-summary"):
        assert isinstance(prompt.scorer, NamesAll)
        assert len(prompt.scorer.wanted) == 10
        assert prompt.text.count("It is decided that") == 5
        assert prompt.scorer(f"It was about the {prompt.scorer.wanted[0]}.") == 0.1


def test_counts() -> None:
    assert isinstance(make_prompt("counting", 1, TOKENS).scorer, Counts)


# --- seeds and halves ---


def test_calibration_has_even_seeds_and_what_is_held_out_odd_ones() -> None:
    assert calibration_seeds(3) == [0, 2, 4]
    assert held_out_seeds(3) == [1, 3, 5]


def test_the_halves_share_no_name() -> None:
    for make in (person, place):
        even, odd = ({make(Draw("names", seed)) for seed in range(half, 400, 2)} for half in (0, 1))
        assert len(even) > 150
        assert not even & odd


def test_the_halves_share_next_to_no_paragraph() -> None:
    """A few are in two files of Python's own."""
    shapes = [shape for shape in SHAPES if shape not in {"tool-choice", "json-extraction", "table-extraction"}]
    even, odd = (
        {
            paragraph
            for prompt in make_prompts(shapes, range(half, 6, 2), [TOKENS])
            for paragraph in prompt.text.split("\n\n")
            if len(paragraph) > 100
        }
        for half in (0, 1)
    )
    assert len(even) > 100
    assert len(even & odd) < 0.01 * len(even)


def test_lengths_take_turns() -> None:
    made = make_prompts(["question-last", "counting"], [1, 3], [600, 3_000])
    assert [count_tokens(prompt.text) > 1_500 for prompt in made] == [False, True, True, False]
    assert [(prompt.shape, prompt.seed) for prompt in made] == [
        *(("question-last", 1), ("counting", 1)),
        *(("question-last", 3), ("counting", 3)),
    ]


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no shape 'question-nowhere': choose among question-last"):
        shape_names(["question-last", "question-nowhere"])
    with pytest.raises(InputError, match="ask for 500 or more"):
        make_prompt("question-last", 1, 100)
    with pytest.raises(InputError, match="put two or more files"):
        make_prompts(["question-last"], range(20), [TOKENS], tmp_path)


# --- texts ---


def test_a_folder_s_texts_are_used_and_halved(tmp_path: Path) -> None:
    for number in range(4):
        sentences = (f"Essay {number} has a sentence with the number {line}." for line in range(400))
        (tmp_path / f"{number}.txt").write_text("\n\n".join(sentences))
    used = [set[str](), set[str]()]
    for seed in range(80):
        used[seed % 2].update(re.findall(r"Essay (\d)", make_prompt("question-last", seed, TOKENS, tmp_path).text))
    assert used == [{"0", "2"}, {"1", "3"}]


def test_news_have_their_own_summaries(tmp_path: Path) -> None:
    file = tmp_path / "longbench" / "multi_news.jsonl"
    file.parent.mkdir()
    rows = [{"context": f"News {number}. " * 260, "answers": [f"Summary {number}."]} for number in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    for seed in SEEDS:
        prompt = make_prompt("news-summary", seed, TOKENS, tmp_path)
        number = int(prompt.text.split()[1].rstrip("."))
        assert prompt.answer == f"Summary {number}."
        assert number % 2 == seed % 2
    assert "It is decided that" in make_prompt("news-summary", 1, TOKENS).text


def test_data_in_place_of_words_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "metadata", lambda _: type("Metadata", (), {"json": {"description": "x" * 5_000}}))
    for seed in SEEDS:
        assert "x" * 200 not in make_prompt("question-last", seed, TOKENS).text


# --- as samples of a sweep or a calibration ---


def test_samples_of_either_half() -> None:
    for data, half in (("shapes", 0), ("held-out-shapes", 1)):
        samples = load_samples(f"{data}:{len(SHAPES) + 2}", characters=2_400, seed=0)
        assert [sample.task for sample in samples] == [*SHAPES, *list(SHAPES)[:2]]
        seeds = [sample.shaped.seed for sample in samples if sample.shaped]
        assert seeds == [half] * len(SHAPES) + [half + 2] * 2
        assert all(sample.lead == "" for sample in samples)


def test_generated_prompts_and_those_of_shapes_take_turns() -> None:
    samples = load_samples("generated:3+shapes:2", characters=2_400, seed=0)
    assert [sample.task for sample in samples] == [
        "needle",
        "question-last",
        "many-needles",
        "question-first",
        "key-value",
    ]


def test_another_seed_gives_other_samples_of_the_same_half() -> None:
    first, second = (shape_samples(2, 2_400, seed) for seed in (1, 3))
    assert first[0].prompt != second[0].prompt
    assert all(sample.shaped is not None and sample.shaped.seed % 2 for sample in [*first, *second])


@pytest.mark.parametrize("data", ["shapes:0", "shapes:many", "generated:4:folder"])
def test_samples_that_cannot_be_counted_are_refused(data: str) -> None:
    with pytest.raises(InputError, match="shapes:COUNT:FOLDER"):
        load_samples(data, characters=2_400, seed=0)
