"""`halting_vision` on ViTs that run batches: what hosts ask of them, leaving no trace, and what is refused."""

from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from deltahalt import UnsupportedError
from deltahalt.vision import ToMe, VisionDash, VisionZip, halting_vision
from helpers.batched_oracle import tower
from helpers.batched_towers import IMAGES, TOKENS, TOWERS, encode, halted, home, images_of, left_of, model_of, stock
from helpers.tiny import attributes
from helpers.tiny_vision import features_of

# What LLaVA asks of its tower


def test_features_of_several_hidden_states() -> None:
    """The first is taken before anything halts, the last behind the last block: both lack the same places."""
    model = model_of("llava", vision_feature_layer=[1, -2, -1])
    expected, (features, report) = stock("llava", model), halted("llava", model, VisionDash(retain=1))
    assert torch.equal(features, expected)
    features, report = halted("llava", model, VisionZip(retain=0.5, contextual=0))
    for ours, theirs, kept in zip(features, expected, report.kept, strict=True):
        assert torch.equal(ours[kept], theirs[kept])
    features, report = halted("llava", model, VisionDash(retain=0.5, start=2))
    assert left_of(features) == [kept.tolist() for kept in report.kept]
    assert all(len(kept) == 8 for kept in report.kept)


def test_the_class_token_stays_where_it_is_a_feature() -> None:
    model = model_of("llava", vision_feature_select_strategy="full")
    with halting_vision(model, ToMe(retain=0.3, start=1, step=0.5)) as seam:
        features = torch.stack(features_of(encode("llava", model)))
    assert features.shape[:2] == (IMAGES, 1 + TOKENS)
    for own, kept in zip(features, seam.report.kept, strict=True):
        assert left_of(own[None]) == [[0, *(1 + kept).tolist()]]
    assert seam.report.groups == (TOKENS,) * IMAGES


def test_hidden_states_that_are_asked_for_have_their_full_length() -> None:
    model = model_of("gemma3")
    with torch.no_grad():
        expected = home(model)(pixel_values=images_of("gemma3"), output_hidden_states=True).hidden_states
        with halting_vision(model, VisionDash(retain=0.5, start=2)):
            output = home(model)(pixel_values=images_of("gemma3"), output_hidden_states=True)
    for number, (ours, theirs) in enumerate(zip(output.hidden_states, expected, strict=True)):
        there = ~ours[..., 0].isnan()
        assert there.sum() == IMAGES * TOKENS * 4 // 2
        assert torch.equal(ours[there], theirs[there]) == (number <= 3)


# Coming and going


@pytest.mark.parametrize("policy", [VisionDash(start=1), ToMe(start=1), VisionZip()])
@pytest.mark.parametrize("name", TOWERS)
def test_after_the_block_the_model_is_as_before(name: str, policy: Any) -> None:
    model = model_of(name)
    expected = stock(name, model)
    before = attributes(model)
    features, _ = halted(name, model, policy)
    assert features.isnan().any()
    assert attributes(model) == before
    assert torch.equal(stock(name, model), expected)


@pytest.mark.parametrize("policy", [VisionDash(start=1), ToMe(start=1)])
@pytest.mark.parametrize("name", TOWERS)
def test_hooks_on_blocks_and_their_parts_fire_once(name: str, policy: Any) -> None:
    model, calls = model_of(name), []
    core = tower(model)
    parts = {"embed": core.embeddings, "tower": home(model)}
    parts |= {f"block {index}": block for index, block in enumerate(core.encoder.layers)}
    parts |= {f"key {index}": block.self_attn.k_proj for index, block in enumerate(core.encoder.layers)}
    for part, module in parts.items():
        module.register_forward_pre_hook(lambda *_, part=part: calls.append(part))
    halted(name, model, policy)
    assert sorted(calls) == sorted(parts)


@pytest.mark.parametrize("name", TOWERS)
def test_offloaded_weights(name: str) -> None:
    """Weights wait elsewhere and are brought for each part's own run."""
    model = model_of(name)
    for part in home(model).modules():
        if isinstance(part, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            weights = {key: value.detach().clone() for key, value in part.named_parameters()}
            hook = AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
            add_hook_to_module(part, hook)
    for policy in (VisionDash(start=1), ToMe(start=1), VisionZip()):
        expected, _ = halted(name, model_of(name), policy)
        torch.testing.assert_close(halted(name, model, policy)[0], expected, equal_nan=True, rtol=0, atol=0)


# What is refused


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_padding_inside_an_image_is_refused(name: str, attention: str) -> None:
    model, images = model_of(name, attention), images_of(name)[None]
    mask = torch.ones(1, IMAGES, 32, 32, dtype=torch.bool)
    with halting_vision(model, VisionDash()), torch.no_grad():
        model.model.get_image_features(images, mask)
        mask[0, 1, :, 20:] = False
        with pytest.raises(UnsupportedError, match="the ViT received an attention mask"):
            model.model.get_image_features(images, mask)


def test_patches_that_make_no_squares_are_refused() -> None:
    model = model_of("idefics3", scale_factor=3)
    with halting_vision(model, VisionDash()), pytest.raises(UnsupportedError, match=r"64 patches .* squares of 3 x 3"):
        encode("idefics3", model)


def test_attention_weights_of_the_tower_are_refused() -> None:
    model = model_of("llava")
    with halting_vision(model, VisionDash()), pytest.raises(UnsupportedError, match="output_attentions"):
        home(model)(images_of("llava"), output_attentions=True)


def test_gradient_checkpointing_is_refused_while_training() -> None:
    model = model_of("llava")
    model.gradient_checkpointing_enable()
    with halting_vision(model, VisionDash()):
        assert encode("llava", model).last_hidden_state.isnan().any()
        model.train()
        with pytest.raises(UnsupportedError, match=r"call model\.eval"):
            encode("llava", model)
