"""Profiles know their model, are refused for another, and "auto" always ends in a policy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltahalt import InputError, MaxSim, UnsupportedError, WindowAttention, halting, parse_policy
from deltahalt.policies.base import place
from deltahalt.profile import (
    AHEAD,
    FINDING,
    Choice,
    Profile,
    Signature,
    blind_default,
    find_policy,
    names_profile,
    policy_text,
    safe_default,
    shipped,
)
from helpers.tiny import VOCAB, tiny
from helpers.tiny_vision import tiny_vision

CHOICES = (Choice("dash:start=2", 1.7, 0.0, 1.0), Choice("random:start=1", 2.5, 0.1, 1.0))


def _profile(decoder: object) -> Profile:
    return Profile("tiny", Signature.of(decoder), CHOICES, {"samples": 1})


@pytest.fixture
def decoder() -> torch.nn.Module:
    decoder: torch.nn.Module = tiny("llama").get_decoder()
    torch.nn.init.normal_(decoder.norm.weight, generator=torch.Generator().manual_seed(0))
    return decoder


def test_a_profile_is_read_as_it_was_written(decoder: torch.nn.Module, tmp_path: Path) -> None:
    profile = _profile(decoder)
    profile.write(tmp_path / "new" / "p.json")
    assert Profile.parse((tmp_path / "new" / "p.json").read_text(), "p.json") == profile


def test_the_speed_asked_for_selects_the_choice(decoder: torch.nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "p.json")
    _profile(decoder).write(Path(path))
    assert policy_text(path, decoder) == "dash:start=2"
    assert policy_text(f"{path}:1.5", decoder) == "dash:start=2"
    assert policy_text(f"{path}:2", decoder) == "random:start=1"
    assert policy_text(f"{path}:9", decoder) == "random:start=1"
    with pytest.raises(InputError, match="asks for no speedup"):
        policy_text(f"{path}:fast", decoder)


def test_a_profile_of_another_model_is_refused(decoder: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    _profile(decoder).write(path)
    with torch.no_grad():
        decoder.norm.weight.mul_(1.01)  # type: ignore[union-attr, operator] # as a fine-tuned copy
    assert policy_text(str(path), decoder) == "dash:start=2"
    torch.nn.init.normal_(decoder.norm.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr, arg-type]
    with pytest.raises(InputError, match="another model, tiny"):
        policy_text(str(path), decoder)
    with pytest.raises(InputError, match="another model"):
        policy_text(str(path), tiny("qwen2").get_decoder())


def test_a_profile_from_before_errors_were_reported_is_read(decoder: torch.nn.Module, tmp_path: Path) -> None:
    _profile(decoder).write(tmp_path / "p.json")
    fields = json.loads((tmp_path / "p.json").read_text())
    for choice in fields["choices"]:
        del choice["error"]
    assert Profile.parse(json.dumps(fields), "p.json") == _profile(decoder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 99}', '{"format": 1, "signature": 3}'])
def test_what_is_no_profile_is_refused_by_name(text: str, decoder: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"p\.json"):
        policy_text(str(path), decoder)


def test_a_missing_profile_is_refused(decoder: torch.nn.Module) -> None:
    with pytest.raises(InputError, match=r"no profile no/such\.json"):
        policy_text("no/such.json", decoder)


def test_other_texts_are_left_alone(decoder: torch.nn.Module) -> None:
    assert policy_text("dash:start=3", decoder) == "dash:start=3"
    assert [names_profile(text) for text in ("auto", "auto:2", "a.json", "a.json:2", "dash", "dash:start=1")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    policy = WindowAttention(start=3)
    assert find_policy(policy, decoder) is policy


@pytest.mark.parametrize("variant", ["llama", "qwen2", "gemma3", "phi3", "mistral-sliding"])
def test_auto_gives_every_model_a_policy_that_runs(variant: str) -> None:
    model = tiny(variant)
    assert isinstance(parse_policy(policy_text("auto", model.get_decoder())), MaxSim)
    ids = torch.randint(1, VOCAB, (1, 500), generator=torch.Generator().manual_seed(0))
    with halting(model, "auto") as halted:
        model(ids, logits_to_keep=1)
    assert halted.report.lengths[0][-1] == 500 - round(0.35 * (500 - 256 - 128))


def test_the_default_decides_after_a_twelfth_of_the_layers() -> None:
    (policy,) = parse_policy(safe_default(tiny("llama", num_hidden_layers=25).get_decoder())).stages
    assert isinstance(policy, MaxSim)
    assert (policy.start, policy.layers_ahead) == (2, 0)
    assert {name: getattr(policy, name) for name in FINDING} == FINDING


def test_where_there_are_pictures_attention_decides_after_a_look_ahead() -> None:
    (policy,) = parse_policy(safe_default(tiny("llama", num_hidden_layers=20).get_decoder(), vision=True)).stages
    assert isinstance(policy, WindowAttention)
    assert (policy.start, policy.layers_ahead) == (2, AHEAD)
    with halting(tiny_vision("qwen2_vl"), "auto") as halted:
        assert isinstance(halted.policy, WindowAttention)


def test_where_layers_are_offloaded_the_default_looks_at_none_of_them() -> None:
    decoder = tiny("llama").get_decoder()
    decoder.layers[4].to("meta")
    (stage,) = place(parse_policy(safe_default(decoder, vision=True)), 6)
    (policy,) = stage.policies
    assert (stage.last, stage.ahead(policy, stage.last, 6)) == (3, 0)


def test_where_no_layer_sees_the_whole_prompt_there_is_no_default_for_pictures() -> None:
    with pytest.raises(UnsupportedError, match="name a policy"):
        safe_default(tiny("mistral-sliding").get_decoder(), vision=True)


def test_before_the_question_tokens_stop_late_or_halt_early() -> None:
    assert blind_default(tiny("llama").get_decoder()) == "forecast:start=4,pruning_ratio=1"
    (stage,) = parse_policy(blind_default(tiny("gemma3").get_decoder())).stages
    assert (stage.name, stage.start, stage.pruning_ratio) == ("key-norm", 1, 0.36)


def test_each_way_of_asking_has_its_own_profile(
    decoder: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, blind = _profile(decoder), replace(_profile(decoder), choices=CHOICES[1:], query_free=True)
    monkeypatch.setattr("deltahalt.profile.shipped", lambda: iter([blind, asked]))
    assert policy_text("auto", decoder) == CHOICES[0].policy
    assert policy_text("auto-query-free", decoder) == policy_text("auto-query-free:1.5", decoder) == CHOICES[1].policy
    blind.write(tmp_path / "p.json")
    assert Profile.parse((tmp_path / "p.json").read_text(), "p.json") == blind
    monkeypatch.setattr("deltahalt.profile.shipped", lambda: iter([asked]))
    assert policy_text("auto-query-free", decoder) == blind_default(decoder)


def test_shipped_profiles_are_whole_and_differ() -> None:
    profiles = list(shipped())
    for profile in profiles:
        alike = [other for other in profiles if other.query_free == profile.query_free]
        assert sum(profile.signature.matches(other.signature) for other in alike) == 1
        assert [choice.speedup for choice in profile.choices] == sorted(choice.speedup for choice in profile.choices)
        for choice in profile.choices:
            place(parse_policy(choice.policy), profile.signature.layers)
            assert choice.policy in json.dumps(profile.evidence)
    assert {profile.model for profile in profiles} == {
        "gemma3-270m",
        "qwen2.5-coder-0.5b",
        "qwen2.5-coder-1.5b",
        "smollm2-135m",
    }
