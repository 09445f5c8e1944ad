"""Profiles know their model, are refused for another, and "auto" always ends in a policy."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import (
    D3,
    BothEnds,
    Dash,
    Forecast,
    InputError,
    MaxSim,
    PolicyError,
    UnsupportedError,
    WindowAttention,
    applying,
    halting,
    parse_policy,
)
from deltahalt.policies.base import place
from deltahalt.policies.text import format_policy
from deltahalt.policies.usual import AHEAD, SHORTEST, blind_default, safe_default
from deltahalt.profile import (
    Choice,
    Profile,
    Signature,
    check_profile,
    resolve,
    shipped,
)
from deltahalt.profile_names import names_profile
from helpers.tiny import VOCAB, tiny
from helpers.tiny_vision import IMAGE, tiny_vision, vision_prompts

CHOICES = (Choice("dash:start=2", 1.7, 0.0, 1.0), Choice("random:start=1", 2.5, 0.1, 1.0))


def _profile(decoder: object) -> Profile:
    return Profile("tiny", Signature.of(decoder), CHOICES, {"samples": 1})


def policy_text(text: str, decoder: object, **options: Any) -> str:
    return resolve(text, decoder, **options).text


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
    assert policy_text(f"{path}:2.5", decoder) == "random:start=1"
    with pytest.raises(InputError, match=r"as fast as 99x: the fastest reaches 2\.50x\. Choose one of 1\.70x, 2\.50x"):
        policy_text(f"{path}:99", decoder)
    with pytest.raises(InputError, match=r"2\.50x"):
        check_profile(f"{path}:99")


@pytest.mark.parametrize("speed", ["", "fast", "nan", "-1", "0", "0.5", "inf"])
def test_a_speedup_that_is_not_a_number_from_one_is_refused_with_those_that_there_are(
    speed: str, decoder: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    _profile(decoder).write(path)
    known = {"auto": r"smollm2-135m 1\.71x, 2\.50x", "auto-query-free": "smollm2-135m", str(path): r"1\.70x, 2\.50x"}
    for name, speeds in known.items():
        complaint = f"has the speedup '{speed}': write 1 or more, such as {name}:1.*{speeds}"
        with pytest.raises(InputError, match=complaint):
            check_profile(f"{name}:{speed}")


def test_a_model_without_a_profile_has_no_speeds_to_choose_from(decoder: torch.nn.Module) -> None:
    with pytest.raises(InputError, match=r"'auto:2\.5'.*no profile.*calibrate --target-speedup 2\.5"):
        policy_text("auto:2.5", decoder)
    (note,) = resolve("auto", decoder).notes
    assert "default for uncalibrated models" in note


def test_options_override_what_a_profile_chose(decoder: torch.nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "p.json")
    _profile(decoder).write(Path(path))
    found = resolve(path, decoder, options={"start": "0.5", "keep_first": 4})
    assert found.text == "dash:start=0.5,keep_first=4"
    assert found.notes == ("start=0.5 replaces 2", "keep_first=4 replaces the default")


def test_options_are_not_given_twice(decoder: torch.nn.Module) -> None:
    assert resolve("dash:start=3", decoder, options={"keep_first": 4}).text == "dash:start=3,keep_first=4"
    with pytest.raises(PolicyError, match=r"start is given twice: as 3 in 'dash:start=3', and as 5 by an option"):
        resolve("dash:start=3", decoder, options={"start": 5})


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ([Dash()], r"this is a list: write Progressive\(\[\.\.\.\]\)"),
        (None, "this is None"),
        (Dash, r"this is the class Dash: write Dash\(\)"),
        (D3(), r"use applying\(model, method\)"),
        (3, "this is of type int"),
    ],
)
def test_what_is_not_a_policy_is_refused_with_what_to_write(given: Any, advice: str) -> None:
    model = tiny("llama")
    with pytest.raises(PolicyError, match=advice), halting(model, given):
        pass
    with pytest.raises(PolicyError) if not isinstance(given, D3) else nullcontext(), applying(model, given):
        pass


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
    with halting(tiny("llama"), policy) as halted:
        assert halted.policy is policy


def test_a_number_of_tokens_replaces_the_share_that_a_profile_chose(decoder: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    choice = Choice("dash:start=2,pruning_ratio=0.5,keep_first=4", 1.7, 0.0, 1.0)
    replace(_profile(decoder), choices=(choice,)).write(path)
    found = resolve(str(path), decoder, options={"keep": 300})
    assert found.text == "dash:start=2,keep_first=4,keep=300"
    assert found.notes == ("keep=300 replaces pruning_ratio=0.5",)
    model = tiny("llama")
    ids = torch.randint(1, VOCAB, (1, 600), generator=torch.Generator().manual_seed(0))
    for policy in ("auto", MaxSim(start=1, pruning_ratio=0.3)):
        with halting(model, policy, keep=420) as halted:
            model(ids, logits_to_keep=1)
        assert len(halted.report.kept[0]) == 420
    with pytest.raises(PolicyError, match=r"keep is 300, but 'dash:pruning_ratio=0\.5' gives pruning_ratio"):
        resolve("dash:pruning_ratio=0.5", decoder, options={"keep": 300})


@pytest.mark.parametrize("variant", ["llama", "qwen2", "gemma3", "phi3", "mistral-sliding"])
def test_auto_gives_every_model_a_policy_that_runs(variant: str) -> None:
    model = tiny(variant)
    assert isinstance(parse_policy(policy_text("auto", model.get_decoder())), BothEnds)
    ids = torch.randint(1, VOCAB, (1, 600), generator=torch.Generator().manual_seed(0))
    with halting(model, "auto") as halted:
        model(ids, logits_to_keep=1)
    assert len(halted.report.kept[0]) == 600 - round(0.35 * (600 - 256 - 128))


def test_the_default_decides_after_a_twelfth_of_the_layers() -> None:
    policy = safe_default([None] * 25)
    assert isinstance(policy, BothEnds)
    assert (policy.start, policy.chunk, policy.ends) == (2, 64, (256, 128))


def test_the_default_leaves_short_prompts_whole() -> None:
    policy = safe_default([None] * 25)
    assert (policy.kept(SHORTEST - 1), policy.kept(SHORTEST)) == (SHORTEST - 1, SHORTEST - round(0.35 * 128))


def test_where_there_are_pictures_text_and_pictures_halt_by_attention_each_in_its_layer() -> None:
    text, images = safe_default([None] * 20, vision=True).stages
    assert isinstance(text, WindowAttention)
    assert isinstance(images, WindowAttention)
    assert (text.scope, text.start, text.layers_ahead, text.pruning_ratio) == ("text", 2, AHEAD, 0.35)
    assert (images.scope, images.start, images.layers_ahead, images.pruning_ratio) == ("visual", 6, 0, 0.5)
    assert (images.chunk, images.kernel) == (1, 1)


@pytest.mark.parametrize("variant", ["qwen2_vl", "llava"])
def test_auto_halts_half_of_a_picture_and_text_beside_it_as_without_one(variant: str) -> None:
    model = tiny_vision(variant)
    call = vision_prompts(model, variant, ((10, (4, 4), 500),)).call()
    with halting(model, "auto") as halted:
        model(**call, logits_to_keep=1)
    visual = int((call["input_ids"] == IMAGE).sum())
    text = call["input_ids"].shape[1] - 256 - 128
    (kept,) = halted.report.kept
    assert int((call["input_ids"][0, kept] == IMAGE).sum()) == visual - visual // 2
    assert call["input_ids"].shape[1] - len(kept) == visual // 2 + round(0.35 * text)


def test_where_layers_are_offloaded_the_default_looks_at_none_of_them() -> None:
    decoder = tiny("llama").get_decoder()
    decoder.layers[4].to("meta")
    stages = place(parse_policy(policy_text("auto", decoder, vision=True)), 6, vision=True)
    assert [(stage.last, stage.policies[0].scope, stage.policies[0].layers_ahead) for stage in stages] == [
        (2, "visual", 0),
        (3, "text", 0),
    ]


def test_where_no_layer_sees_the_whole_prompt_there_is_no_default_for_pictures() -> None:
    with pytest.raises(UnsupportedError, match="no default policy: name one, such as"):
        safe_default([8] * 6, vision=True)


def test_before_the_question_tokens_stop_late_or_halt_early() -> None:
    assert blind_default([None] * 6) == Forecast(start=4, pruning_ratio=1)
    (stage,) = parse_policy(policy_text("auto-query-free", tiny("gemma3").get_decoder())).stages
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
    assert policy_text("auto-query-free", decoder) == format_policy(blind_default([None] * 6))


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
