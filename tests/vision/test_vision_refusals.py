"""What is refused of vision-language models."""

import pytest
import torch

from deltahalt import (
    Dash,
    Dense,
    FastV,
    PolicyError,
    UnsupportedError,
    halting,
)
from helpers.oracle import Feed
from helpers.tiny_vision import (
    ALONE,
    VISION,
    tiny_vision,
    vision_prompts,
)
from helpers.vision_ways import VISUAL, generated


def test_visual_tokens_of_a_decoder_by_itself_are_refused() -> None:
    with (
        pytest.raises(UnsupportedError, match="passed whole"),
        halting(tiny_vision().get_decoder(), Dash(**VISUAL)),
    ):
        pass


def test_an_unknown_family_around_a_known_decoder_is_refused() -> None:
    model = tiny_vision("llava")
    model.model.config.model_type = "fuyu"
    message = "'fuyu' is not a known family; known: gemma3, idefics3, llava, .*smolvlm"
    with pytest.raises(UnsupportedError, match=message), halting(model, Dense()):
        pass


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_halting_twice_is_refused(name: str) -> None:
    model = tiny_vision(name)
    for part in (model, model.model, model.get_decoder()):
        with halting(model, Dense()), pytest.raises(UnsupportedError, match="leave the other"), halting(part, Dense()):
            pass


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
@pytest.mark.parametrize("cache", ["static", "offloaded"])
def test_other_caches_are_refused(name: str, cache: str) -> None:
    model = tiny_vision(name)
    with halting(model, Dense()), pytest.raises(UnsupportedError, match="leave cache_implementation unset"):
        generated(model, vision_prompts(model, name, ALONE), cache_implementation=cache)


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_masks_by_kind_of_layer_are_refused(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    given = prompts.inputs | {"input_ids": prompts.ids, "position_ids": prompts.positions}
    mask = {"full_attention": None, "sliding_attention": None}
    with halting(model, Dense()), pytest.raises(UnsupportedError, match=r"give attention_mask as \[batch, tokens\]"):
        model(**given, attention_mask=mask)


@pytest.mark.parametrize("name", VISION)
def test_all_logits_of_a_halting_prefill_are_refused(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    with halting(model, Dash(**VISUAL)), torch.no_grad(), pytest.raises(UnsupportedError, match="logits_to_keep=1"):
        model(**prompts.call(), position_ids=prompts.positions)
    with halting(model, Dash(**VISUAL)), torch.no_grad(), pytest.raises(UnsupportedError, match=r"\(up to 1\)"):
        model(**prompts.call(), position_ids=prompts.positions, logits_to_keep=2)


def test_a_layer_beyond_the_window_cannot_score_by_attention() -> None:
    model = tiny_vision("gemma3")
    prompts = vision_prompts(model, "gemma3", ALONE)
    with halting(model, FastV(start=3)), pytest.raises(UnsupportedError, match="choose a start layer with full"):
        prompts.feed(Feed(model))


def test_a_stage_too_deep_is_refused() -> None:
    with pytest.raises(PolicyError, match="start at 4 at most"), halting(tiny_vision(), FastV(start=5)):
        pass
