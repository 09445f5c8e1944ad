"""The sweep agrees with a real halted generate, resumes, and reads or generates its samples."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import (
    Dash,
    DashFrozen,
    Dense,
    Forecast,
    InputError,
    KeyNorm,
    PolicyError,
    Progressive,
    Random,
    SingleInputKV,
    WindowAttention,
    halting,
    parse_policy,
)
from deltahalt.host.compat import CACHE
from deltahalt.lab.evaluation import answers
from deltahalt.lab.evaluation.answers import own_answers
from deltahalt.lab.evaluation.grid import variants
from deltahalt.lab.evaluation.prompt_sweep import PromptSweep
from deltahalt.lab.evaluation.samples import TASKS, Sample, generate_samples, read_samples
from deltahalt.lab.evaluation.summary import markdown, summarize
from deltahalt.lab.evaluation.sweep import (
    SweepRow,
    SweepSettings,
    encode,
    greedy_answer,
    judge,
    read_sweep,
    reference_speedup,
    sweep,
    sweep_sample,
)
from deltahalt.lab.rows.base import append_rows
from deltahalt.loading.models import LoadedModel
from deltahalt.policies.base import AnyPolicy, place
from deltahalt.policies.layer_view import LayerView
from helpers.frozen import frozen, plain
from helpers.methods import named
from helpers.tiny import VOCAB, tiny

PROTECTED = {"keep_first": 4, "keep_last": 8}
POLICIES: list[AnyPolicy] = [
    Dense(),
    Dash(**PROTECTED),
    Random(start=3, boundary="attention", **PROTECTED),
    Progressive([KeyNorm(start=1, pruning_ratio=0.3, **PROTECTED), Random(start=3, **PROTECTED)]),
]
AHEAD = WindowAttention(start=1, ahead=3, across="max", window=4, pruning_ratio=0.5, **PROTECTED)
SAMPLES = [Sample("needle", "The tide is in. " * 12, "at noon"), Sample("summary", "The tide is out. " * 12)]
NOTHING = torch.zeros(1, 0, dtype=torch.long)  # comes between prompt and answer
SPECS = ["dense", "dash:keep_first=4,keep_last=8", "random:keep_first=4,keep_last=8"]


@pytest.mark.parametrize("variant", ["llama", "gemma3", "mistral-sliding", "phi3"])
def test_each_policy_is_judged_as_generate_would_go(variant: str) -> None:
    model = tiny(variant)
    ids = torch.randint(1, VOCAB, (1, 60), generator=torch.Generator().manual_seed(0))
    plans = [place(policy, 6) for policy in POLICIES]
    shared = PromptSweep(model, ids, {stages[0].first for stages in plans if stages})
    for policy, stages in zip(POLICIES, plans, strict=True):
        with halting(model, policy):
            out = model.generate(ids, max_new_tokens=6, output_logits=True, return_dict_in_generate=True)
        answer = out.sequences[0, ids.shape[1] :]
        logits = torch.stack([step[0] for step in out.logits])
        with torch.inference_mode():
            verdict = judge(model, shared.finish(stages), NOTHING, answer)
            wrong = judge(model, shared.finish(stages), NOTHING, (answer + 1) % VOCAB)
            along = judge(model, shared.followed_by(answer[None, :-1]).finish(stages), NOTHING, answer)
        assert verdict.right.all()
        assert along.right.all()
        assert wrong.nll > verdict.nll
        for nll in (verdict.nll, along.nll):
            assert nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, answer)), abs=1e-5)


def test_frozen_keys_and_values_are_judged_as_generate_would_go() -> None:
    model = tiny("llama")
    ids = torch.randint(1, VOCAB, (1, 60), generator=torch.Generator().manual_seed(3))
    policy = DashFrozen(**PROTECTED)
    with halting(model, policy):
        out = model.generate(ids, max_new_tokens=6, output_logits=True, return_dict_in_generate=True)
    answer, logits = out.sequences[0, 60:], torch.stack([step[0] for step in out.logits])
    stages = place(policy, 6)
    with torch.inference_mode():
        readable = PromptSweep(model, ids, {stages[0].first}).finish(stages)
        dropped = PromptSweep(model, ids, {stages[0].first}).finish(place(Dash(**PROTECTED), 6))
        verdict = judge(model, readable, NOTHING, answer)
        other = judge(model, dropped, NOTHING, answer)
    assert verdict.nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, answer)), abs=1e-5)
    assert verdict.nll != pytest.approx(other.nll, abs=1e-5)


QUESTIONS = [Sample("qa", "The tide is in. " * 12, "at noon", question=text) for text in ("When?", "What is out?")]


def test_query_free_no_policy_sees_the_question(loaded_tiny: LoadedModel) -> None:
    settings = SweepSettings(query_free=True)
    one, other = (encode(loaded_tiny, sample, settings) for sample in QUESTIONS)
    assert torch.equal(one.prompt, other.prompt)
    for sample, encoded in zip(QUESTIONS, (one, other), strict=True):
        whole = encode(loaded_tiny, sample, SweepSettings())
        assert torch.equal(torch.cat([encoded.prompt, encoded.rest], dim=1), whole.prompt)
        assert sample.question in loaded_tiny.tokenizer.decode(encoded.rest[0])
    with pytest.raises(InputError, match="a needle sample has none"):
        encode(loaded_tiny, SAMPLES[0], settings)


def test_query_free_an_answer_is_judged_after_a_halted_prompt_and_the_question(
    loaded_tiny: LoadedModel, tmp_path: Path
) -> None:
    settings, spec = SweepSettings(query_free=True), SPECS[1]
    (row,) = list(sweep(loaded_tiny, QUESTIONS[:1], named([spec]), tmp_path / "rows.jsonl", settings))
    encoded = encode(loaded_tiny, QUESTIONS[0], settings)
    assert encoded.answer is not None
    cache = DynamicCache()
    with halting(loaded_tiny.model, parse_policy(spec)) as halted, torch.no_grad():
        loaded_tiny.model(encoded.prompt, **{CACHE: cache}, logits_to_keep=1)
        assert halted.report.kept[0].numel() < encoded.prompt.shape[1]
        later = torch.cat([encoded.rest, encoded.answer[None, :-1]], dim=1)
        logits = loaded_tiny.model(later, **{CACHE: cache}).logits[0, -len(encoded.answer) :]
    assert row.nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, encoded.answer)), abs=1e-5)
    assert row.query_free
    assert row.prompt == encoded.prompt.shape[1]


def test_rows_of_other_settings_are_run_again(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for settings in (
        SweepSettings(),
        SweepSettings(query_free=True),
        SweepSettings(max_answer_tokens=2),
        SweepSettings(),
    ):
        list(sweep(loaded_tiny, QUESTIONS[:1], named(SPECS[:2]), file, settings))
    assert len(file.read_text().splitlines()) == 3 * 2


def test_rows_of_another_number_format_are_run_anew(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    half = loaded_tiny._replace(model=copy.deepcopy(loaded_tiny.model).to(torch.bfloat16))
    for loaded in (loaded_tiny, half, loaded_tiny, half):
        list(sweep(loaded, QUESTIONS[:1], named(SPECS[:2]), file))
    assert [row.dtype for row in read_sweep(file)] == ["float32", "float32", "bfloat16", "bfloat16"]


def test_rows_that_do_not_say_their_number_format_are_not_run_again(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    unsaid = [replace(row, dtype="") for row in sweep_sample(loaded_tiny, QUESTIONS[0], named(SPECS[:1]))]
    append_rows(file, unsaid)
    assert list(sweep(loaded_tiny, QUESTIONS[:1], named(SPECS[:1]), file)) == unsaid


def test_the_full_models_own_answer_is_what_generate_gives() -> None:
    model = tiny("llama")
    ids = torch.randint(1, VOCAB, (1, 40), generator=torch.Generator().manual_seed(1))
    shared = PromptSweep(model, ids, set())
    own = greedy_answer(model, shared.finish(()), NOTHING, 5)
    assert torch.equal(own, model.generate(ids, max_new_tokens=5)[0, 40:])


def test_own_answers_of_several_prompts_are_those_of_each_alone(
    loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [Sample("a", "The tide is in. " * times, lead=lead) for times, lead in ((9, ""), (3, "It"), (12, ""))]
    model = loaded_tiny.model
    alone = []
    with torch.inference_mode():
        for sample in samples:
            shared = PromptSweep(model, encode(loaded_tiny, sample, SweepSettings()).prompt, set())
            alone.append(greedy_answer(model, shared.finish(()), NOTHING, 8).tolist())
    for at_once in (1, 100, 10_000):
        monkeypatch.setattr(answers, "AT_ONCE", at_once)
        assert [said.tolist() for said in own_answers(loaded_tiny, samples, 8)] == alone
    monkeypatch.setattr(model.generation_config, "eos_token_id", alone[0][3])
    said = own_answers(loaded_tiny, samples, 8)
    assert said[0].tolist() == alone[0][: alone[0].index(alone[0][3]) + 1]


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("kept", [plain, frozen], ids=["drop", "frozen"])
def test_what_runs_along_is_judged_as_what_follows_the_cache(kept: Any, length: int) -> None:
    model = tiny("llama")
    ids, rest, answer = (
        torch.randint(1, VOCAB, (1, size), generator=torch.Generator().manual_seed(size)) for size in (60, 3, length)
    )
    stages = [
        place(policy, 6)
        for policy in (*map(kept, POLICIES), SingleInputKV(start=2, keep_last=8), Forecast(start=2, keep_last=8), AHEAD)
    ]
    with torch.inference_mode():
        shared = PromptSweep(model, ids, {own[0].first for own in stages if own})
        along = shared.followed_by(torch.cat([rest, answer[:, :-1]], dim=1))
        for own in stages:
            verdict = judge(model, along.finish(own), rest, answer[0])
            expected = judge(model, shared.finish(own), rest, answer[0])
            assert verdict.nll == pytest.approx(expected.nll, abs=1e-5)
            assert torch.equal(verdict.right, expected.right)
            assert len(verdict.right) == length


def test_policies_that_differ_in_their_choice_alone_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And choose as they do alone; a second decision, which sees fewer tokens, is scored anew."""
    model, scored = tiny("llama"), []
    ids = torch.randint(1, VOCAB, (1, 60), generator=torch.Generator().manual_seed(0))
    score = WindowAttention.score

    def counted(self: WindowAttention, view: LayerView) -> torch.Tensor:
        scored.append(view.layer)
        return score(self, view)

    policies = [
        AHEAD,
        replace(AHEAD, pruning_ratio=0.3),
        replace(AHEAD, chunk=4),
        replace(AHEAD, ahead=1),
        Progressive([replace(AHEAD, pruning_ratio=0.2), replace(AHEAD, start=3, pruning_ratio=0.5)]),
        Progressive([replace(AHEAD, pruning_ratio=0.4), replace(AHEAD, start=3, pruning_ratio=0.6)]),
        replace(AHEAD, start=3),
    ]
    plans = [place(policy, 6) for policy in policies]
    with torch.inference_mode():
        alone = [PromptSweep(model, ids, {own[0].first}).finish(own).states for own in plans]
        monkeypatch.setattr(WindowAttention, "score", counted)
        shared = PromptSweep(model, ids, {own[0].first for own in plans})
        together = [shared.finish(own).states for own in plans]
    assert scored == [1, 1, 3, 3, 3]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_rows_of_the_full_model_show_no_change(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    rows = list(sweep(loaded_tiny, SAMPLES, named(["dense"]), tmp_path / "rows.jsonl"))
    for row in rows:
        assert (row.nll, row.agreement, row.speedup) == (row.full_nll, 1.0, 1.0)


def test_a_second_run_adds_only_what_is_missing(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first = list(sweep(loaded_tiny, SAMPLES, named(SPECS[:2]), file))
    written = file.read_text()
    again = list(sweep(loaded_tiny, SAMPLES, named(SPECS), file))
    assert file.read_text().startswith(written)
    assert len(file.read_text().splitlines()) == len(SAMPLES) * len(SPECS)
    assert [row for row in again if row.policy != SPECS[2]] == first


def test_the_reference_speedup_is_that_of_the_same_fractions_of_the_depth() -> None:
    by_index = reference_speedup(Dash(start=15), layers=30)
    assert by_index == reference_speedup(Dash(start=0.5), layers=30)
    assert by_index == pytest.approx(1.49, abs=0.005)
    assert reference_speedup(Dense(), layers=30) == 1


def test_generated_samples_repeat_with_the_seed_and_hold_their_answers() -> None:
    samples = generate_samples(12, 4_000, seed=3)
    assert samples == generate_samples(12, 4_000, seed=3)
    assert samples != generate_samples(12, 4_000, seed=4)
    assert len({sample.task for sample in samples}) == len(TASKS)
    for sample in samples:
        assert sample.answer is None or sample.task == "code" or _holds(sample.prompt, sample.answer)
        assert sample.question
        assert (
            (1_500 if sample.task.startswith("key-value") else 3_000) < len(sample.text) < 9_000
        )  # the last paragraph may be long


def _holds(prompt: str, answer: str) -> bool:
    """Whether the prompt has the answer, or each part of a list."""
    return all(part in prompt for part in answer.strip().split(", "))


def test_what_is_to_be_listed_is_all_there_is_and_in_order() -> None:
    samples = [sample for sample in generate_samples(36, 4_000, seed=5) if sample.task == "deliveries"]
    for sample in samples:
        (dish,) = re.findall(r"have ordered (.+), in the order", sample.question)
        assert sample.answer == " " + ", ".join(re.findall(f"The kitchen in (\\w+) has ordered {dish}", sample.prompt))
    assert len(samples) == 3


def test_several_things_are_asked_at_once() -> None:
    by_task = {sample.task: sample for sample in generate_samples(12, 4_000, seed=6)}
    values, group = by_task["key-values"], by_task["group-portrait"]
    pairs, keys = json.loads(values.prompt), re.findall(r"[0-9a-f]{8}", values.question)
    assert values.answer == ", ".join(pairs[key] for key in keys)
    assert len(keys) == 4
    assert group.answer is not None
    assert len(group.answer.split(", ")) == group.question.count(" who plays the ") == 4


def test_samples_are_read_from_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    rows = [
        {"task": "qa", "prompt": "Who?", "answer": None},
        {"task": "qa", "prompt": "?", "answer": "I", "lead": "It is"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert read_samples(file) == [Sample("qa", "Who?", None), Sample("qa", "?", "I", "It is")]


@pytest.mark.parametrize("line", ["{", "[]", '{"task": "qa", "prompt": "Who?"}'])
def test_a_line_that_is_no_sample_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match=r"samples.jsonl, line 1"):
        read_samples(file)


def test_a_missing_file_of_samples_is_named() -> None:
    with pytest.raises(InputError, match=r"no/such"):
        read_samples(Path("no/such.jsonl"))


def test_variants_cross_what_a_policy_leaves_open() -> None:
    crossed = variants(["dash", "random:start=3", "dash:start=1+random:start=2", "dense"], ["0.2", "0.4"], ["0.5"])
    assert [*crossed] == [
        "dash:start=0.2,pruning_ratio=0.5",
        "dash:start=0.4,pruning_ratio=0.5",
        "random:pruning_ratio=0.5,start=3",
        "dash:start=1+random:start=2",
        "dense",
    ]
    assert crossed == named(crossed)


def test_variants_refuse_a_wrong_value_before_anything_runs() -> None:
    with pytest.raises(PolicyError, match="pruning_ratio is 2"):
        variants(["dash"], ["0.4"], ["2"])


def _row(policy: str, speedup: float, nll: float) -> SweepRow:
    return SweepRow("s", "needle", "m", policy, 100, 2, True, nll, True, 1.0, 0.5, speedup, speedup)


def test_a_summary_averages_a_policys_rows() -> None:
    again = replace(_row("fast", 2.0, 1.3), sample="t")
    slow, fast = summarize([_row("fast", 2.0, 1.5), again, _row("slow", 1.5, 1.1)])
    assert (slow.policy, fast.policy, fast.samples) == ("slow", "fast", 2)
    assert fast.nll_change == pytest.approx(0.4)


def test_the_table_has_a_line_a_policy_and_a_column_a_task() -> None:
    table = markdown([_row("fast", 2.0, 1.5), _row("slow", 1.5, 1.1)]).splitlines()
    assert table[0] == "| policy | speedup | needle |"
    assert table[2:] == ["| `slow` | 1.50x | 1.00, +0.10 |", "| `fast` | 2.00x | 1.00, +0.50 |"]


@pytest.mark.parametrize(
    ("other", "head", "cells"),
    [
        ({"model": "n"}, "model", ("m", "n")),
        ({"halted_kv": "frozen"}, "halted K/V", ("drop", "frozen")),
        ({"query_free": True}, "query-free", ("no", "yes")),
        ({"max_answer_tokens": 100}, "answer tokens", ("48", "100")),
        ({"dtype": "float32"}, "dtype", ("bfloat16", "float32")),
    ],
)
def test_a_line_is_of_one_model_and_way(other: dict[str, Any], head: str, cells: tuple[str, str]) -> None:
    usual = replace(_row("dash", 2.0, 1.5), dtype="bfloat16")
    unusual = replace(usual, nll=2.0, **other)
    assert len(summarize([unusual, usual])) == 2
    table = markdown([unusual, usual]).splitlines()
    assert table[0] == f"| {head} | policy | speedup | needle |"
    assert table[2:] == [
        f"| {cells[0]} | `dash` | 2.00x | 1.00, +0.50 |",
        f"| {cells[1]} | `dash` | 2.00x | 1.00, +1.00 |",
    ]


def test_rows_from_before_the_format_was_told_are_of_the_only_one_that_is() -> None:
    old = _row("dash", 2.0, 1.5)
    told = replace(old, sample="t", nll=2.5, dtype="bfloat16")
    assert [line.samples for line in summarize([old, told])] == [2]
    assert markdown([old, told]).splitlines()[2:] == ["| `dash` | 2.00x | 1.00, +1.00 |"]
    assert [line.samples for line in summarize([old, told, replace(told, dtype="float32")])] == [1, 1, 1]


def test_counts_of_samples_are_shown_where_they_differ_and_a_missing_task_is_empty() -> None:
    fast, slow = _row("fast", 2.0, 1.5), _row("slow", 1.5, 1.1)
    other = replace(fast, sample="t", task="qa")
    table = markdown([fast, slow, other, slow]).splitlines()  # and a row given twice counts once
    assert table[0] == "| policy | speedup | samples | needle | qa |"
    assert table[2:] == [
        "| `slow` | 1.50x | 1 | 1.00, +0.10 |  |",
        "| `fast` | 2.00x | 2 | 1.00, +0.50 | 1.00, +0.50 |",
    ]
