"""What there is: `policies` and `flops`."""

import json
import re
from pathlib import Path

import pytest

from deltahalt.methods.registry import METHODS, known_methods
from deltahalt.policies.describe import describe
from deltahalt.vision import VISION_POLICIES
from deltahalt.vision.policies import known_vision_policies
from helpers.command import deltahalt


def test_policies_lists_each_with_stage_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("policies", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == [*METHODS, *VISION_POLICIES]
    assert {row["name"] for row in listed if row["stage"] == "vision"} == set(VISION_POLICIES)
    assert all(row["summary"] and row["stage"] and row["source"] for row in listed)


def test_flops_prints_table_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("flops", "--shape", "qwen2.5-7b", "--lengths", "16384") == 0
    shown = capsys.readouterr().out
    for figure in ("5,520", "45.49 %", "1.83x", "1.68x"):
        assert figure in shown


def test_flops_of_a_model(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("flops", "--model", str(tiny_folder), "--lengths", "400", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["prompt"] == 400
    assert row["true_speedup"] > 1


@pytest.mark.parametrize("options", [[], ["--shape", "1,2"], ["--shape", "qwen2.5-7b", "--lengths", "many"]])
def test_flops_refuses_what_it_cannot_count(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("flops", *options) == 2
    assert "deltahalt: " in capsys.readouterr().err


EVERY = {**known_methods(), **known_vision_policies()}


@pytest.mark.parametrize("name", EVERY)
def test_every_option_of_a_policy_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("policies", name, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == name
    for option in shown["options"]:
        assert option["type"]
        assert option["meaning"], f"{name}: say what {option['name']} means in the docstring"
    assert deltahalt("policies", name) == 0
    said = capsys.readouterr().out
    assert all(f"{option['name']}={option['default']}"[:20] in said for option in shown["options"])


def test_defaults_and_types_are_those_of_the_class() -> None:
    options = {option.name: option for option in describe(EVERY["window-attention"])}
    assert (options["start"].default, options["start"].type) == ("0.4", "number")
    assert (options["heads"].default, options["heads"].type) == ("mean", "mean, max")
    assert options["window"].type == "whole number"
    assert len(options["keep_first"].meaning) < 200  # its own sentences, and not those of the next option
    assert all("Raises" not in option.meaning for option in options.values())


@pytest.mark.parametrize("policy", ["auto", "auto-query-free"])
def test_flops_of_a_shape_takes_auto_as_the_default_for_uncalibrated_models(
    policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deltahalt("flops", "--shape", "qwen2.5-7b", "--lengths", "16384", "--policy", policy, "--json") == 0
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    text = re.search(rf"{policy}: (\S+), the default for uncalibrated models", shown.err)[1]  # type: ignore[index]
    assert deltahalt("flops", "--shape", "qwen2.5-7b", "--lengths", "16384", "--policy", text, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [row]
    assert row["true_speedup"] > 1


def test_flops_of_a_model_takes_what_auto_stands_for_there(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny_folder), "--lengths", "2000", "--json"]
    assert deltahalt("flops", *options, "--policy", "auto") == 0
    shown = capsys.readouterr()
    assert "auto: both-ends:" in shown.err
    (row,) = json.loads(shown.out)
    assert row["kept"] < 2000
