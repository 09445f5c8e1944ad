"""Calibration tries what it says it tries, chooses what loses least, and writes it down."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from deltahalt import InputError, MaxSim, Progressive, WindowAttention, parse_policy
from deltahalt.lab.evaluation import calibrate as calibration
from deltahalt.lab.evaluation import once
from deltahalt.lab.evaluation import sweep as sweeping
from deltahalt.lab.evaluation.answers import own_answers
from deltahalt.lab.evaluation.calibrate import ROUNDS, calibrate, default_samples, in_turn
from deltahalt.lab.evaluation.candidates import (
    ASKED,
    BLIND,
    LATE_RATIO,
    Form,
    deciding_layers,
    exit_of,
    first_field,
    forgotten_share,
    layer_of,
    looks_ahead,
    pair,
    relieved,
    single,
    stopping_layers,
    usual_layer,
    usual_policies,
    varied,
)
from deltahalt.lab.evaluation.rating import rate
from deltahalt.lab.evaluation.samples import TASKS, Sample, generate_samples, load_samples
from deltahalt.lab.evaluation.shapes.registry import SHAPES
from deltahalt.lab.evaluation.sweep import SweepRow, digest, read_sweep, reference_speedup
from deltahalt.loading.models import LoadedModel
from deltahalt.methods.registry import AnyMethod
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import format_policy
from deltahalt.policies.usual import AHEAD, attended, exit_at, resembling, updated
from deltahalt.profile import Choice, Profile


@pytest.mark.parametrize("form", [resembling, attended])
@pytest.mark.parametrize("target", [1.5, 1.7, 2.0])
@pytest.mark.parametrize("layer", [3, 9])
def test_one_decision_meets_its_target_with_the_smallest_ratio(layer: int, target: float, form: Form) -> None:
    policy = single(layer, target, 28, form)
    assert policy is not None
    (stage,) = policy.stages
    assert reference_speedup(stage, 28) >= target
    assert reference_speedup(replace(stage, pruning_ratio=round(stage.pruning_ratio - 0.005, 3)), 28) < target


def _at(layer: int, target: float) -> AnyPolicy:
    policy = single(layer, target, 28)
    assert policy is not None
    return policy


@pytest.mark.parametrize(("first", "last", "target"), [(4, 14, 1.7), (4, 8, 2.5), (8, 9, 1.7)])
def test_two_decisions_meet_their_target_and_ratios_rise(first: int, last: int, target: float) -> None:
    policy = pair(_at(first, target), _at(last, 1.5), target, 28)
    assert policy is not None
    assert [stage.start for stage in policy.stages] == [first, last]
    assert policy.stages[0].pruning_ratio < policy.stages[1].pruning_ratio
    assert reference_speedup(policy, 28) >= target


def test_what_no_ratio_reaches_is_none() -> None:
    assert single(20, 2.0, 28) is None
    assert pair(_at(20, 1.2), _at(22, 1.1), 2.0, 28) is None
    assert pair(_at(14, 1.5), _at(4, 1.5), 1.5, 28) is None


@pytest.mark.parametrize("target", [1.5, 1.7])
def test_a_late_decision_lets_the_earlier_ones_halt_less(target: float) -> None:
    alone = [_at(4, target), pair(_at(4, target), _at(8, target), target, 28)]
    for before in alone:
        assert before is not None
        policy = relieved(before, resembling(18, LATE_RATIO), target, 28)
        assert policy is not None
        *stages, last = policy.stages
        assert (last.start, last.pruning_ratio) == (18, LATE_RATIO)
        for stage, own in zip(stages, before.stages, strict=True):
            assert stage.start == own.start
            assert 0 < stage.pruning_ratio < own.pruning_ratio
        assert reference_speedup(policy, 28) >= target
        less = [replace(stage, pruning_ratio=round(stage.pruning_ratio - 0.01, 3)) for stage in stages]
        assert reference_speedup(Progressive([*less, last]), 28) < target


def test_what_halts_as_much_already_is_not_relieved() -> None:
    assert relieved(_at(14, 1.7), resembling(18, LATE_RATIO), 1.7, 28) is None


@pytest.mark.parametrize("target", [1.5, 1.7])
def test_an_exit_lets_earlier_decisions_halt_less(target: float) -> None:
    alone = single(4, target, 28, updated)
    assert alone is not None
    policy = relieved(alone, exit_at(18), target, 28)
    assert policy is not None
    early, late = policy.stages
    assert late == exit_at(18)
    assert (exit_of(policy), exit_of(alone)) == (18, None)
    assert forgotten_share(policy) == early.pruning_ratio < forgotten_share(alone)
    assert reference_speedup(policy, 28) >= target > reference_speedup(late, 28)


def test_an_exit_that_is_fast_enough_needs_no_other_decision() -> None:
    alone = single(4, 1.7, 28, updated)
    assert alone is not None
    assert relieved(alone, exit_at(14), 1.7, 28) == exit_at(14)
    assert forgotten_share(exit_at(14)) == 0
    assert relieved(alone, exit_at(3), 1.7, 28) is None


WINDOWS = (None,) * 28


def test_the_best_vary_in_surroundings_window_signal_and_number_of_decisions() -> None:
    best = [_at(layer, 1.7) for layer in (6, 4, 9, 12)]
    texts = [text for text in varied(best, 1.7, WINDOWS) if text]
    assert not set(best) & set(texts)
    starts = [[stage.start for stage in text.stages] for text in texts]
    assert starts[:8] == [[layer] for layer in (6, 4, 9, 12) for _ in range(2)]
    assert starts[8:12] == [[6], [4], [9], [12]]
    assert starts[12:] == [[6, 9], [4, 6], [4, 9], [6, 18], [4, 18], [9, 18], [6, 9, 18], [4, 6, 18], [4, 9, 18]]
    alike = [text.stages[0] for text in texts[:2]]
    assert [(policy.window, policy.kernel) for policy in alike if isinstance(policy, MaxSim)] == [(16, 193), (16, 129)]
    attended = [text.stages[0] for text in texts[8:12]]
    assert [policy.similar for policy in attended if isinstance(policy, WindowAttention)] == [1] * 4
    assert all(forgotten_share(text) == LATE_RATIO for text in texts[15:])


def test_attention_is_tried_at_the_nearest_layer_that_sees_the_whole_prompt() -> None:
    windows = [None if layer in (5, 11) else 64 for layer in range(18)]
    best = [text for layer in (2, 3, 7, 13) if (text := single(layer, 1.2, 18))]
    texts = [text for text in varied(best, 1.2, windows) if text]
    attended = [text for text in texts if text.stages[0].name == "window-attention"]
    assert [layer_of(text) for text in attended] == [5, 11]
    assert not any(text.stages[0].name == "window-attention" for text in varied(best, 1.2, [64] * 18) if text)


@pytest.mark.parametrize(("layer", "ahead"), [(3, AHEAD), (17, 10)])
def test_a_look_ahead_names_no_more_layers_than_there_are(layer: int, ahead: int) -> None:
    texts = [text for text in varied([_at(layer, 1.2)], 1.2, WINDOWS) if text]
    seen = {looks_ahead(text) for text in texts if text.stages[0].name == "window-attention"}
    assert seen == {ahead}


def test_what_sees_no_question_is_tried_alone_and_before_every_exit() -> None:
    field = [text for text in first_field(deciding_layers(28), 1.5, WINDOWS, BLIND) if text]
    exits = {layer: text for text in field if (layer := exit_of(text)) is not None}
    assert list(exits) == stopping_layers(WINDOWS) == [*range(14, 22)]
    assert [layer_of(text) for text in field if exit_of(text) is None] == deciding_layers(28)
    assert {stage.start for text in exits.values() for stage in text.stages[:-1]} == {4}
    assert all(stage.name in ("dash-layer", "forecast") for text in field for stage in text.stages)
    assert usual_policies(deciding_layers(28), 1.5, WINDOWS, BLIND) == [*exits.values()]
    best = [exits[20], *(_blind(layer) for layer in (3, 4)), exits[18]]
    texts = [text for text in varied(best, 1.5, WINDOWS, BLIND) if text]
    assert [text.stages[0].name for text in texts[:2]] == ["key-norm"] * 2
    assert [exit_of(text) for text in texts[2:]] == [None, *[20] * 3, *[18] * 3]


def _blind(layer: int) -> AnyPolicy:
    policy = single(layer, 1.5, 28, updated)
    assert policy is not None
    return policy


def test_no_exit_is_tried_where_a_window_would_count_halted_tokens() -> None:
    windows = [None if layer in (5, 11) else 64 for layer in range(18)]
    assert stopping_layers(windows) == []
    assert all(exit_of(text) is None for text in first_field(deciding_layers(18), 1.5, windows, BLIND) if text)
    assert all(exit_of(text) is None for text in first_field(deciding_layers(28), 1.5, WINDOWS, ASKED) if text)


@pytest.mark.parametrize(("depth", "expected"), [(28, 2), (24, 2), (30, 3), (36, 3)])
def test_the_usual_layer_is_near_a_twelfth_of_the_depth(depth: int, expected: int) -> None:
    assert usual_layer(deciding_layers(depth), depth) == expected
    assert usual_layer([9, 5, 11], depth) == 5


def test_layers_from_the_first_few_to_a_little_past_the_middle_decide() -> None:
    assert deciding_layers(28) == [*range(2, 18)]
    assert deciding_layers(6) == [*range(4)]


def test_tasks_come_in_turn_so_that_the_first_samples_are_of_all() -> None:
    a, b, c, d = (Sample(task, prompt) for task, prompt in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")))
    assert in_turn([a, b, c, d]) == [a, d, b, c]


@pytest.mark.parametrize("query_free", [False, True])
def test_a_cpu_gets_fewer_and_shorter_prompts(query_free: bool) -> None:
    (data, characters), (fewer, shorter) = (default_samples(name, query_free=query_free) for name in ("cuda", "cpu"))
    few, many = (load_samples(name, characters=2_400, seed=0) for name in (fewer, data))
    tasks = {*(sample.task for sample in generate_samples(len(TASKS), 2_400, 0)), *(() if query_free else SHAPES)}
    assert {sample.task for sample in few} == tasks
    assert len(few) < len(many)
    assert ROUNDS[1] < len(many)
    assert shorter < characters


SAMPLES = [Sample("tide", "The tide is in. " * 28, "never judged"), Sample("own", "The tide is out. " * 27)]


class Measured:
    """Stands in for the sweep: losses made up from the policies' names, and a note of what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[str]]] = []

    def __call__(
        self, loaded: LoadedModel, samples: Sequence[Sample], policies: Mapping[str, AnyMethod], *_: Any, **__: Any
    ) -> Any:
        self.asked.append((len(samples), [*policies]))
        return [self.row(sample, policy, loaded.name) for sample in samples for policy in policies]

    def row(self, sample: Sample, policy: str, model: str) -> SweepRow:
        change = zlib.crc32(f"{sample.prompt} {policy}".encode()) / 2**32 - 0.3
        speedup = reference_speedup(parse_policy(policy), 6)
        return SweepRow(digest(sample), "t", model, policy, 9, 9, True, 1 + change, True, 1.0, 1.0, speedup, speedup)

    def ranked(self, policies: Iterable[str], samples: Sequence[Sample]) -> list[str]:
        """Policies by mean change, clipped at half a nat."""
        rows = {policy: [self.row(sample, policy, "") for sample in samples] for policy in policies}
        return sorted(rows, key=lambda policy: fmean(max(-0.5, min(0.5, row.nll - 1)) for row in rows[policy]))


def test_each_round_measures_the_better_third_on_more_samples(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, targets = Measured(), [1.5, 1.7]
    monkeypatch.setattr(calibration, "sweep", measured)
    samples = [Sample("t", str(number)) for number in range(50)]
    profile = calibrate(loaded_tiny, samples, targets, tmp_path / "rows.jsonl")

    def third(policies: list[str]) -> list[str]:
        return policies[: max(4, ceil(len(policies) / 3))]

    def texts(policies: Iterable[AnyPolicy | None]) -> list[str]:
        return [format_policy(policy) for policy in policies if policy]

    layers = {target: texts(single(layer, target, 6) for layer in range(4)) for target in targets}
    usual = {target: texts(usual_policies([0, 1, 2, 3], target, (None,) * 6)) for target in targets}
    assert [len(own) for own in usual.values()] == [1, 1]
    fields = {target: third(measured.ranked(own, samples[:12])) for target, own in layers.items()}
    expected = [(12, {text for own in layers.values() for text in own})]
    for target, best in fields.items():
        more = texts(varied([parse_policy(text) for text in best], target, (None,) * 6))
        fields[target] = [*usual[target], *best, *more]
    for count in (12, 36, 50):
        expected.append((count, {text for own in fields.values() for text in own}))
        fields = {
            target: [*usual[target], *third(measured.ranked(own, samples[:count]))] for target, own in fields.items()
        }
    assert [(count, set(policies)) for count, policies in measured.asked] == expected
    assert all(len(policies) == len(set(policies)) for _, policies in measured.asked)
    tried = {line["policy"]: line["samples"] for line in profile.evidence["tried"]}
    assert {policy for policy, count in tried.items() if count == 50} == expected[-1][1]
    assert profile.evidence["measurements"] == sum(tried.values())
    assert {choice.policy for choice in profile.choices} <= expected[-1][1]
    for target in targets:
        assert any(choice.speedup >= target for choice in profile.choices)


def test_a_profile_is_what_was_measured(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "ROUNDS", (1, 1))
    said: list[tuple[str, float]] = []
    rows = tmp_path / "rows.jsonl"
    profile = calibrate(loaded_tiny, SAMPLES, [1.7], rows, tick=lambda *what: said.append(what))
    (choice,) = profile.choices
    tried = profile.evidence["tried"]
    assert {line["policy"] for line in tried} == {row.policy for row in read_sweep(rows)}
    assert profile.evidence["measurements"] == len(read_sweep(rows))
    assert choice.speedup >= 1.7
    (line,) = (line for line in tried if line["policy"] == choice.policy)
    assert line.pop("samples") == len(SAMPLES)
    assert Choice(**line) == choice
    assert choice in {one.choice for one in rate([row for row in read_sweep(rows) if row.policy == choice.policy])}
    assert said[:2] == [("answers of the full model", 0.0), ("1.7x: 4 policies on 1 samples", 0.0)]
    shares = [done for _, done in said]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    profile.write(tmp_path / "profile.json")
    assert Profile.parse((tmp_path / "profile.json").read_text(), "profile.json") == profile


def test_what_the_full_model_answers_is_asked_once(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Sample]] = []

    def counted(loaded: LoadedModel, samples: list[Sample], limit: int) -> Any:
        asked.append(samples)
        return own_answers(loaded, samples, limit)

    monkeypatch.setattr(calibration, "own_answers", counted)
    monkeypatch.setattr(sweeping, "greedy_answer", None)
    profile = calibrate(loaded_tiny, SAMPLES, [1.7], tmp_path / "rows.jsonl")
    assert [[sample.prompt for sample in samples] for samples in asked] == [[own.prompt for own in in_turn(SAMPLES)]]
    assert profile.evidence["measurements"] == len(read_sweep(tmp_path / "rows.jsonl"))


def test_a_calibration_cut_short_goes_on_from_its_rows(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    profile = calibrate(loaded_tiny, SAMPLES, [1.7], whole)
    lines = whole.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[: len(lines) // 2]))
    ran: list[str] = []
    monkeypatch.setattr(once, "append_rows", _counting(ran, once.append_rows))
    again = calibrate(loaded_tiny, SAMPLES, [1.7], rows)
    assert sorted(rows.read_text().splitlines()) == sorted(line.rstrip() for line in lines)
    assert len(ran) == len(lines) - len(lines) // 2
    assert again.choices == profile.choices
    assert again.evidence["tried"] == profile.evidence["tried"]


def _counting(ran: list[str], append: Any) -> Any:
    def counted(path: Path, rows: list[SweepRow]) -> None:
        ran.extend(row.policy for row in rows)
        append(path, rows)

    return counted


def test_an_unreachable_target_is_refused(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reaches 50\.0x: give a lower target"):
        calibrate(loaded_tiny, SAMPLES, [1.5, 50.0], tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_without_samples_nothing_is_calibrated(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        calibrate(loaded_tiny, [], [1.5], tmp_path / "rows.jsonl")


def test_for_a_loss_what_cannot_be_reached_is_left_out(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "ROUNDS", (1, 1))
    profile = calibrate(loaded_tiny, SAMPLES, [1.5, 50.0], tmp_path / "rows.jsonl", max_loss=100.0)
    (choice,) = profile.choices
    tried = profile.evidence["tried"]
    assert choice.speedup == max(line["speedup"] for line in tried if line["samples"] == len(SAMPLES))


def test_query_free_no_policy_sees_the_question(
    loaded_tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "ROUNDS", (1, 1))
    asking = [replace(sample, question="Where is the tide?") for sample in SAMPLES]
    profile = calibrate(loaded_tiny, asking, [1.3], tmp_path / "rows.jsonl", query_free=True)
    assert profile.query_free
    assert all(row.query_free for row in read_sweep(tmp_path / "rows.jsonl"))
    assert any(exit_of(parse_policy(line["policy"])) is not None for line in profile.evidence["tried"])
    with pytest.raises(InputError, match="leave --query-free out"):
        calibrate(loaded_tiny, SAMPLES, [1.3], tmp_path / "more.jsonl", query_free=True)


def test_only_the_layers_asked_for_are_tried(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    profile = calibrate(loaded_tiny, SAMPLES[:1], [1.5], tmp_path / "rows.jsonl", layers=[1])
    starts = [[stage.start for stage in parse_policy(line["policy"]).stages] for line in profile.evidence["tried"]]
    assert {tuple(own) for own in starts} == {(1,), (1, 4)}
    with pytest.raises(InputError, match=r"at layers \[5\]"):
        calibrate(loaded_tiny, SAMPLES[:1], [1.5], tmp_path / "rows.jsonl", layers=[1, 5])
