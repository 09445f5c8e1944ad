"""A press that halts: its settings are those of a policy, it leaves no trace, and a prefill has its last logits."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, DashLayer, PolicyError, UnsupportedError, halting
from helpers.oracle import Feed
from helpers.tiny import VOCAB, attributes, prompts, tiny
from helpers.tiny_vision import SEVERAL, tiny_vision, vision_prompts

pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

import kvpress

from deltahalt.integrations.kvpress import DeltaLayerPress, DeltaPress
from helpers.presses import IDS, SMALL, held, kv_press, prefilled


@pytest.mark.parametrize(("kind", "policy"), [(DeltaPress, Dash), (DeltaLayerPress, DashLayer)])
def test_a_press_halts_the_tokens_of_its_policy(kind: Any, policy: Any) -> None:
    model = tiny()
    cache, halted = prefilled(model, kind(**SMALL))
    with halting(model, policy(start=0.2, pruning_ratio=0.6, keep_first=2, keep_last=3)) as expected:
        feed = Feed(model)
        feed(IDS, logits_to_keep=1)
    assert isinstance(kind(), kvpress.BasePress)
    assert halted.report.kept[0].tolist() == expected.report.kept[0].tolist()
    for ours, theirs in zip(cache.layers, feed.cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_the_settings_are_the_references() -> None:
    policy = DeltaPress().policy
    assert (policy.start, policy.pruning_ratio, policy.keep_first, policy.keep_last) == (0.4, 0.667, 64, 32)


def test_settings_may_change_after_the_press_is_made() -> None:
    """kvpress's evaluation takes a press from its registry and sets the ratio."""
    registry = {"delta_press": DeltaPress(**SMALL | {"compression_ratio": 0.1})}
    press = registry["delta_press"]
    press.compression_ratio = 0.6
    assert held(prefilled(tiny(), press)[0]) == held(prefilled(tiny(), DeltaPress(**SMALL))[0])


@pytest.mark.parametrize(
    "setting",
    [{"compression_ratio": 1.01}, {"start_ratio": 1}, {"start_ratio": "0.4"}, {"keep_first_n": -1}, {"keep_last_n": 0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        DeltaPress(**setting)


def test_a_start_ratio_is_never_an_index() -> None:
    assert DeltaPress(start_ratio=0).policy.start == 0.0
    assert isinstance(DeltaPress(start_ratio=0).policy.start, float)


@pytest.mark.parametrize("then", [None, "SnapKVPress"])
def test_after_the_block_the_model_is_as_before(then: str | None) -> None:
    model = tiny()
    model(IDS)  # kvpress's patch of attention functions leaves a mark on modules that have run
    before = attributes(model)
    press = DeltaPress(**SMALL, then=then and kv_press(then, compression_ratio=0.5, window_size=4))
    prefilled(model, press)
    assert attributes(model) == before

    def fail() -> None:
        with press(model):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert attributes(model) == before


def test_generate_in_the_block_is_that_of_halting() -> None:
    model, (ids, mask) = tiny(), prompts(40, 29)
    with halting(model, DeltaPress(**SMALL).policy):
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    with DeltaPress(**SMALL)(model) as halted:
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5), expected)
    assert halted.report.stages


def test_a_press_on_a_vision_language_model_is_halting_on_it() -> None:
    model = tiny_vision()
    call = vision_prompts(model, "qwen2_vl", SEVERAL).call()
    press, generated = DeltaPress(**SMALL), []
    for context in (press(model), halting(model, press.policy)):
        with context as halted, torch.no_grad():
            generated.append(model.generate(**call, max_new_tokens=4, do_sample=False))
        assert len(halted.report.kept[0]) < call["input_ids"].shape[1]
    assert torch.equal(*generated)


# Logits of a call that does not say how many it wants


def test_a_prefill_gives_the_last_logits_and_a_continuation_all() -> None:
    model, cache = tiny(), DynamicCache()
    with DeltaPress(**SMALL)(model), torch.no_grad():
        assert model(IDS, past_key_values=cache).logits.shape == (1, 1, VOCAB)
        assert model(IDS[:, :4], past_key_values=cache).logits.shape == (1, 4, VOCAB)
        assert model(IDS[:, :4], None, None, cache).logits.shape == (1, 4, VOCAB)


def test_logits_that_are_asked_for_and_were_halted_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="halted tokens have no logits"):
        prefilled(tiny(), DeltaPress(**SMALL), logits_to_keep=0)
