"""Calibration tries what it says it tries, chooses what loses least, and writes it down."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deltahalt import InputError, UnsupportedError, WindowAttention, parse_policy
from deltahalt.evaluation.calibrate import ALL, NOISE, calibrate, choose, deciding_layers, layer_of, pair, rate, single
from deltahalt.evaluation.samples import Sample
from deltahalt.evaluation.sweep import SweepRow, read_sweep, reference_speedup
from deltahalt.models import LoadedModel
from deltahalt.profile import Choice, Profile
from tiny import tiny


@pytest.mark.parametrize("target", [1.5, 1.7, 2.0])
@pytest.mark.parametrize("layer", [3, 9])
def test_one_decision_meets_its_target_with_the_smallest_ratio(layer: int, target: float) -> None:
    text = single(layer, target, 28, {})
    assert text is not None
    (stage,) = parse_policy(text).stages
    assert reference_speedup(stage, 28) >= target
    less = text.replace(f"pruning_ratio={stage.pruning_ratio}", f"pruning_ratio={stage.pruning_ratio - 0.005:.3f}")
    assert reference_speedup(parse_policy(less), 28) < target


def _at(layer: int, target: float) -> str:
    text = single(layer, target, 28, ALL)
    assert text is not None
    return text


@pytest.mark.parametrize(("first", "last", "target"), [(4, 14, 1.7), (4, 8, 2.5), (8, 9, 1.7)])
def test_two_decisions_meet_their_target_and_ratios_rise(first: int, last: int, target: float) -> None:
    text = pair(_at(first, target), _at(last, 1.5), target, 28)
    assert text is not None
    policy = parse_policy(text)
    assert [stage.start for stage in policy.stages] == [first, last]
    assert policy.stages[0].pruning_ratio < policy.stages[1].pruning_ratio
    assert reference_speedup(policy, 28) >= target


def test_what_no_ratio_reaches_is_none() -> None:
    assert single(20, 2.0, 28, {}) is None
    assert pair(_at(20, 1.2), _at(22, 1.1), 2.0, 28) is None
    assert pair(_at(14, 1.5), _at(4, 1.5), 1.5, 28) is None


@pytest.mark.parametrize(("layer", "ahead"), [(3, 24), (17, 10)])
def test_a_look_ahead_at_all_layers_names_as_many_as_there_are(layer: int, ahead: int) -> None:
    text = single(layer, 1.3, 28, ALL)
    assert text is not None
    assert layer_of(text) == layer
    (stage,) = parse_policy(text).stages
    assert isinstance(stage, WindowAttention)
    assert (stage.ahead, stage.across) == (ahead, "max")


def test_layers_that_see_part_of_the_prompt_do_not_decide() -> None:
    config = tiny("gemma3").config
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    layers = deciding_layers(SimpleNamespace(config=config))
    assert layers
    assert not any(windows[layer] for layer in layers)
    with pytest.raises(UnsupportedError, match="no layer"):
        deciding_layers(SimpleNamespace(config=tiny("mistral-sliding").config))


def _choice(policy: str, speedup: float, loss: float) -> Choice:
    return Choice(policy, speedup, loss, 1.0)


A, B, C = (f"dash:pruning_ratio={ratio}" for ratio in (0.6, 0.7, 0.8))
MEASURED = [_choice("dense", 1, 0), _choice(A, 1.7, 0.1), _choice(B, 1.8, 0.05), _choice(C, 2.5, 0.3)]


def test_for_each_speed_the_least_loss_is_chosen() -> None:
    assert [choice.policy for choice in choose(MEASURED, [1.7, 2.0], None)] == [B, C]
    with pytest.raises(InputError, match=r"3\.0x"):
        choose(MEASURED, [3.0], None)


def test_of_equal_losses_the_one_that_halts_least_is_chosen() -> None:
    nearly = [_choice(A, 1.7, 0.054), _choice(B, 1.8, 0.05), _choice(C, 2.5, 0.051)]
    assert [choice.policy for choice in choose(nearly, [1.7], None)] == [A]
    worse = [_choice(A, 1.7, 0.056), *nearly[1:]]
    assert [choice.policy for choice in choose(worse, [1.7], None)] == [B]


def test_for_a_loss_the_fastest_is_chosen() -> None:
    assert [choice.policy for choice in choose(MEASURED, [1.7], 0.2)] == [B]
    with pytest.raises(InputError, match="allow more"):
        choose(MEASURED[1:], [1.7], 0.01)


def test_every_task_counts_the_same_however_many_samples_it_has() -> None:
    row = {"sample": "s", "model": "m", "policy": "p", "prompt": 100, "answer_tokens": 2, "agreement": 1.0}
    row |= {"full_exact": True, "full_nll": 1.0, "speedup": 2.0, "reference_speedup": 2.0}
    rows = [SweepRow(**row, task="a", exact=True, nll=1.0)] * 3 + [SweepRow(**row, task="b", exact=False, nll=2.0)]
    assert rate(rows) == [Choice("p", 2.0, 0.5, 0.5)]


def test_a_profile_is_what_was_measured(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    samples = [Sample("tide", "The tide is in. " * 28, "never judged"), Sample("own", "The tide is out. " * 27)]
    said: list[str] = []
    profile = calibrate(loaded_tiny, samples, [1.7], tmp_path / "rows.jsonl", tick=said.append)
    (choice,) = profile.choices
    tried = [Choice(**line) for line in profile.evidence["tried"]]
    assert choice in tried
    assert choice.speedup >= 1.7
    assert choice.loss <= min(other.loss for other in tried if other.speedup >= 1.7) + NOISE
    assert sorted(tried, key=lambda line: line.policy) == sorted(
        rate(read_sweep(tmp_path / "rows.jsonl")), key=lambda line: line.policy
    )
    assert said[0] == "1.7x: which layer"
    profile.write(tmp_path / "profile.json")
    assert Profile.parse((tmp_path / "profile.json").read_text(), "profile.json") == profile


def test_an_unreachable_target_is_refused(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ask for less"):
        calibrate(loaded_tiny, [], [50.0], tmp_path / "rows.jsonl")


def test_for_a_loss_what_cannot_be_reached_is_left_out(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    samples = [Sample("tide", "The tide is in. " * 28)]
    profile = calibrate(loaded_tiny, samples, [1.5, 50.0], tmp_path / "rows.jsonl", max_loss=100.0)
    (choice,) = profile.choices
    assert choice.speedup == max(line["speedup"] for line in profile.evidence["tried"])


def test_only_the_layers_asked_for_are_tried(loaded_tiny: LoadedModel, tmp_path: Path) -> None:
    samples = [Sample("tide", "The tide is in. " * 28)]
    profile = calibrate(loaded_tiny, samples, [1.5], tmp_path / "rows.jsonl", layers=[1])
    assert all("start=1," in line["policy"] and "+" not in line["policy"] for line in profile.evidence["tried"])
    with pytest.raises(InputError, match=r"layers \[5\] cannot decide"):
        calibrate(loaded_tiny, samples, [1.5], tmp_path / "rows.jsonl", layers=[1, 5])
