"""Policies on prompts of shapes: generation and NLL as a real halted run has them, rows, and their table."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dense, InputError, halting, parse_policy
from deltahalt.answering.documents import format_chat
from deltahalt.host.compat import CACHE
from deltahalt.lab.evaluation.answers import own_answers
from deltahalt.lab.evaluation.encoding import sample_ids, shared_ids
from deltahalt.lab.evaluation.samples import Sample, shaped_sample
from deltahalt.lab.evaluation.shapes.base import ShapedPrompt, assistant, system, user
from deltahalt.lab.evaluation.shapes.measure import measure_prompt, measure_prompts
from deltahalt.lab.evaluation.shapes.row import ShapeRow
from deltahalt.lab.evaluation.shapes.scorers import Names
from deltahalt.lab.evaluation.shapes.summary import ALL, markdown, summarize
from deltahalt.lab.evaluation.sweep import SweepSettings, digest, encode, sweep
from deltahalt.lab.rows.base import read_rows
from deltahalt.loading.models import LoadedModel

POLICY = "random:start=2,keep_first=8,keep_last=16,pruning_ratio=0.5"
HALTED = {POLICY: parse_policy(POLICY)}
METHODS: dict[str, Any] = {"dense": Dense(), **HALTED}
TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}" + TEMPLATE
LAST = ShapedPrompt(
    "question-last", 1, (user("The tide is in. " * 12 + "When?"),), "at noon", Names("noon"), 6, "When?"
)
NEXT = ShapedPrompt(
    *("question-next-turn", 1, (user("The tide is in. " * 12), assistant("Yes?"), user("When?")), "at noon"),
    scorer=Names("noon"),
    limit=6,
    question="When?",
    hidden=2,
)
PLAIN = ShapedPrompt("continuation", 1, (user("The tide is out. " * 12),), "It is noon.", chat=False)
PROMPTS = [LAST, NEXT, PLAIN]


@pytest.fixture
def chatting(loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """The tiny model with a chat format."""
    monkeypatch.setattr(loaded_tiny.tokenizer, "chat_template", TEMPLATE, raising=False)
    return loaded_tiny


def ids_of(loaded: LoadedModel, text: str) -> torch.Tensor:
    return loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def test_the_prompt_is_in_the_model_s_chat_format(chatting: LoadedModel) -> None:
    text = chatting.tokenizer.decode(sample_ids(chatting, shaped_sample(NEXT)))
    assert text == f"<user>{'The tide is in. ' * 12}</><assistant>Yes?</><user>When?</><assistant>"


def test_a_text_that_nothing_is_asked_of_is_no_chat(chatting: LoadedModel) -> None:
    assert chatting.tokenizer.decode(sample_ids(chatting, shaped_sample(PLAIN))) == "The tide is out. " * 12


def test_what_is_hidden_is_read_after_the_rest(chatting: LoadedModel) -> None:
    encoded = encode(chatting, shaped_sample(NEXT), SweepSettings())
    assert chatting.tokenizer.decode(encoded.prompt[0]) == f"<user>{'The tide is in. ' * 12}</>"
    assert chatting.tokenizer.decode(encoded.rest[0]) == "<assistant>Yes?</><user>When?</><assistant>"
    assert shared_ids(chatting, shaped_sample(LAST), sample_ids(chatting, shaped_sample(LAST))) is None


def test_a_query_free_sweep_refuses_a_shape_that_shows_its_question(chatting: LoadedModel) -> None:
    with pytest.raises(InputError, match="a question-last sample has none: fill its field"):
        encode(chatting, shaped_sample(LAST), SweepSettings(query_free=True))


def test_a_format_without_system_prompts_has_it_before_the_user_s_words(
    loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loaded_tiny.tokenizer
    turns = [system("Be brief."), user("Hello."), assistant("Hi."), user("When?")]
    monkeypatch.setattr(tokenizer, "chat_template", NO_SYSTEM, raising=False)
    merged = "<user>Be brief.\n\nHello.</><assistant>Hi.</><user>When?</><assistant>"
    assert format_chat(tokenizer, turns) == merged
    monkeypatch.setattr(tokenizer, "chat_template", None, raising=False)
    assert format_chat(tokenizer, turns) == "Be brief.\n\nHello.\n\nHi.\n\nWhen?"


def test_samples_from_before_shapes_are_known_by_the_same_digest() -> None:
    assert digest(Sample("needle", "The tide is in.", "at noon", question="When?")) == "e86e0514497543c1"
    assert digest(shaped_sample(LAST)) != digest(shaped_sample(replace(LAST, answer="at dawn")))
    assert digest(shaped_sample(LAST)) == digest(shaped_sample(replace(LAST, seed=3)))


@pytest.mark.parametrize("prompt", PROMPTS, ids=["last", "next-turn", "plain"])
def test_rows_are_those_of_a_real_halted_run(chatting: LoadedModel, prompt: ShapedPrompt) -> None:
    model: Any = chatting.model
    encoded = encode(chatting, shaped_sample(prompt), SweepSettings())
    rows = {row.policy: row for row in measure_prompt(chatting, prompt, METHODS)}
    for text, row in rows.items():
        with halting(model, parse_policy(text)), torch.no_grad():
            cache = DynamicCache(config=model.config)
            logits = model(encoded.prompt, **{CACHE: cache}, logits_to_keep=1).logits
            if encoded.rest.shape[1]:
                logits = model(encoded.rest, **{CACHE: cache}, logits_to_keep=1).logits
            said: list[int] = []
            while len(said) < prompt.limit and (not said or said[-1] != model.generation_config.eos_token_id):
                said.append(int(logits[0, -1].argmax()))
                logits = model(torch.tensor([said[-1:]]), **{CACHE: cache}).logits
        assert row.said == (chatting.tokenizer.decode(said, skip_special_tokens=True) if prompt.scorer else "")
        assert row.score == (0.0 if prompt.scorer else None)
        assert row.prompt == encoded.prompt.shape[1]
    assert rows["dense"].nll == rows["dense"].full_nll == rows[POLICY].full_nll
    assert rows[POLICY].nll != rows[POLICY].full_nll
    assert rows[POLICY].speedup > 1 == rows["dense"].speedup
    swept = {row.policy: row for row in sweep_rows(chatting, prompt)}
    assert swept[POLICY].nll == pytest.approx(rows[POLICY].nll, abs=1e-5)


def sweep_rows(loaded: LoadedModel, prompt: ShapedPrompt) -> Any:
    from deltahalt.lab.evaluation.sweep import sweep_sample

    return list(sweep_sample(loaded, shaped_sample(prompt), METHODS))


def test_the_full_model_s_own_answers_to_shapes_are_generated(chatting: LoadedModel) -> None:
    answers = own_answers(chatting, [shaped_sample(prompt) for prompt in PROMPTS], 4)
    assert all(1 <= len(answer) <= 4 for answer in answers)


def test_a_measurement_goes_on_where_it_was_cut_short(
    chatting: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    first = list(measure_prompts(chatting, PROMPTS[:1], HALTED, rows))
    every = list(measure_prompts(chatting, PROMPTS, METHODS, rows))
    assert len(read_rows(rows, ShapeRow)) == len(every) == 6
    assert every[1] == first[0]
    measure = "deltahalt.lab.evaluation.shapes.measure.measure_prompt"
    monkeypatch.setattr(measure, lambda *given: pytest.fail("measured again"))
    assert list(measure_prompts(chatting, PROMPTS, METHODS, rows)) == every


def test_samples_of_shapes_can_be_swept(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    rows = list(sweep(loaded_tiny, [shaped_sample(prompt) for prompt in PROMPTS], HALTED, tmp_path / "rows.jsonl"))
    assert [row.task for row in rows] == ["question-last", "question-next-turn", "continuation"]


# --- the table ---


def row(shape: str, sample: str, score: float | None, full: float | None, nll: float = 1.0) -> ShapeRow:
    ran = dict.fromkeys(("dtype", "attention", "machine", "deltahalt", "transformers", "torch"), "")
    return ShapeRow(
        **ran,
        sample=sample,
        shape=shape,
        seed=1,
        held_out=True,
        model="m",
        policy="dash",
        prompt=100,
        answer_tokens=3,
        score=score,
        full_score=full,
        said="",
        nll=nll,
        full_nll=1.0,
        speedup=1.5,
        reference_speedup=1.7,
    )


ROWS = [
    *(row("first", f"a{number}", score, 1.0, 1.0 + number) for number, score in enumerate((1.0, 0.0, 1.0, 0.0))),
    *(row("hard", f"b{number}", 0.0, full) for number, full in enumerate((0.0, 0.0, 0.0, 0.25))),
    *(row("plain", f"c{number}", None, None, 3.0) for number in range(4)),
]


def test_a_line_a_shape_with_its_paired_difference() -> None:
    first, hard, plain, every = summarize(ROWS)
    assert (first.full, first.score) == (1.0, 0.5)
    assert first.change == pytest.approx((-0.5, math.sqrt(1 / 3) / 2))
    assert first.nll == pytest.approx((1.5, math.sqrt(5 / 3) / 2))
    assert not hard.counts
    assert (plain.full, plain.score, plain.change) == (None, None, None)
    assert plain.nll == (2.0, 0.0)
    assert every.shape == ALL
    assert every.change == first.change
    assert every.prompts == 12
    assert every.nll[0] == pytest.approx((1.5 + 0 + 2) / 3)


def test_the_table_says_what_does_not_count() -> None:
    table = markdown(ROWS)
    assert "| `dash` | 1.70x | first | 4 | 100.0 | 50.0 | -50.0 ± 28.9 | +1.500 ± 0.645 |" in table
    assert "| hard | 4 | 6.2 | 0.0 | full model fails: does not count | +0.000 ± 0.000 |" in table
    assert "| plain | 4 |  |  |  | +2.000 ± 0.000 |" in table


def test_of_the_same_prompt_the_last_row_counts() -> None:
    (first, _) = summarize([row("first", "a", 0.0, 1.0), row("first", "a", 1.0, 1.0)])
    assert (first.prompts, first.score) == (1, 1.0)
    assert math.isnan(first.nll[1])


# --- the command ---


@pytest.mark.parametrize(
    "command", [("shapes", "--prompts", 1, "--tokens", 500), ("eval", "--tasks", "shapes", "--lengths", 500)]
)
def test_the_command_shows_every_shape(
    command: tuple[object, ...],
    deltahalt: Callable[..., int],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("deltahalt.lab.evaluation.shapes.make_prompts", lambda *_: PROMPTS)
    rows = tmp_path / "rows.jsonl"
    policy = ["--policies", f"dense {POLICY}"] if command[0] == "shapes" else ["--policy", POLICY]
    assert deltahalt(*command, "--model", tiny_folder, "--device", "cpu", "--rows", rows, *policy) == 0
    shown = capsys.readouterr().out
    assert "question-next-turn" in shown
    assert "full model fails: does not count" in shown
    assert len(read_rows(rows, ShapeRow)) == (6 if command[0] == "shapes" else 3)
    assert deltahalt("report", rows) == 0
    assert "question-next-turn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--tasks", "shapes,needle"), "run shapes by themselves"),
        (("--tasks", "shapes", "--min-prompt-tokens", "9"), "cannot use --min-prompt-tokens: give only"),
        (("--tasks", "shapes", "--batch-size", "2", "--seed", "3"), "cannot use --batch-size and --seed: give only"),
        (("--tasks", "shapes", "--apply-chat-template"), "cannot use --apply-chat-template: give only"),
        (("--tasks", "shapes", "--bertscore", "none"), "cannot use --bertscore: give only"),
        (("--tasks", "shapes", "--attention", "eager", "--max-length", "9"), "--attention and --max-length: give only"),
    ],
)
def test_eval_refuses_what_shapes_do_not_take(
    options: tuple[str, ...], complaint: str, deltahalt: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert deltahalt("eval", *options) == 2
    assert complaint in capsys.readouterr().err


def test_a_shape_that_is_unknown_is_refused(deltahalt: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("shapes", "--shapes", "question-nowhere") == 2
    assert "choose among question-last" in capsys.readouterr().err
