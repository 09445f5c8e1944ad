"""`halting_vision` comes and goes without a trace, and refuses what it cannot serve."""

import inspect
import itertools
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from deltahalt import Dash, Dense, InputError, PolicyError, UnsupportedError, halting
from deltahalt.vision import VISION_POLICIES, ToMe, VisionDash, VisionZip, halting_vision
from deltahalt.vision.towers import known_towers
from helpers.tiny import attributes, tiny
from helpers.tiny_vision import (
    END,
    GRID,
    GROUPS,
    MROPE,
    ROWS,
    START,
    VIDEO,
    Prompts,
    pixels,
    tiny_vision,
    vision_prompts,
)
from helpers.vision_ways import generated
from helpers.vit_policies import keeping

DASH = VisionDash(retain=0.5, start=1)


def encode(model: Any, **options: Any) -> Any:
    with torch.no_grad():
        return model.model.visual(pixels(GRID), grid_thw=GRID, **options)


def halted(model: Any, policy: Any = DASH) -> torch.Tensor:
    with halting_vision(model, policy):
        return encode(model).pooler_output


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


# Nothing halted


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", sorted(known_towers()))
def test_generate_is_the_host_s_bit_for_bit_where_all_stays(name: str, policy: Any, rows: Any) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, rows)
    expected = generated(model, prompts)
    with halting(model, Dense(), vision=policy(retain=1)):
        ours = generated(model, prompts)
    assert torch.equal(ours.sequences, expected.sequences)
    assert all(map(torch.equal, ours.logits, expected.logits))


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", MROPE)
def test_a_video_in_the_prompt(name: str, policy: Any) -> None:
    """Two frames of 2 x 2 tokens, which stand apart in Qwen3-VL's prompts."""
    model, grid = tiny_vision(name), torch.tensor([[2, 4, 4]])
    frames = [4, 4] if name == "qwen3_vl" else [8]
    clip = itertools.chain(*([START, *[VIDEO] * tokens, END] for tokens in frames))
    ids = torch.tensor([[1, 2, *clip, *range(3, 12)]])
    inputs = {"pixel_values_videos": pixels(grid), "video_grid_thw": grid}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = 2 * (ids == VIDEO).long()
    prompt = Prompts(ids, torch.ones_like(ids), inputs)
    expected = generated(model, prompt)
    with halting(model, Dense(), vision=policy(retain=1)):
        assert all(map(torch.equal, generated(model, prompt).logits, expected.logits))
    with halting(model, Dense(), vision=keeping(policy, 0.5)) as halted:
        generated(model, prompt)
    (kept,) = halted.vision_report.kept
    assert len(kept) == 4
    left = torch.cat([(ids[0] != VIDEO).nonzero().squeeze(1), prompt.visual[0].nonzero().squeeze(1)[kept]])
    assert torch.equal(halted.report.kept[0], left.sort().values)


# Leaving the block


@pytest.mark.parametrize("policy", [DASH, ToMe(start=1), VisionZip()])
@pytest.mark.parametrize("name", MROPE)
def test_after_the_block_the_model_is_as_before(name: str, policy: Any) -> None:
    model = tiny_vision(name)
    before, expected = attributes(model), encode(model)
    assert halted(model, policy).isnan().any()
    assert attributes(model) == before
    assert torch.equal(encode(model).pooler_output, expected.pooler_output)


def test_after_an_exception_the_model_is_as_before() -> None:
    model = tiny_vision()
    before = attributes(model)

    def halt_and_fail() -> None:
        with halting_vision(model, DASH):
            encode(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halt_and_fail()
    assert attributes(model) == before


@pytest.mark.parametrize("where", [0, 1, 4])
def test_after_an_exception_inside_a_block_the_model_is_as_before(where: int) -> None:
    model = tiny_vision()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    hook = model.model.visual.blocks[where].mlp.register_forward_pre_hook(fail)
    before = attributes(model)
    with pytest.raises(ZeroDivisionError):
        halted(model)
    assert attributes(model) == before
    hook.remove()
    assert same(halted(model), halted(tiny_vision()))


# What others do to the model


@pytest.mark.parametrize("policy", [DASH, ToMe(start=1)])
def test_hooks_on_blocks_and_their_parts_fire_once(policy: Any) -> None:
    model, calls = tiny_vision("qwen3_vl"), []
    visual = model.model.visual
    parts = {"embed": visual.patch_embed, "merger": visual.merger, "deep": visual.deepstack_merger_list[1]}
    parts |= {f"block {index}": block for index, block in enumerate(visual.blocks)}
    parts |= {f"attention {index}": block.attn for index, block in enumerate(visual.blocks[:2])}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    halted(model, policy)
    assert sorted(calls) == sorted(parts)


def test_accelerate_brings_a_tower_and_its_blocks_to_their_weights() -> None:
    class Counting(AlignDevicesHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().pre_forward(module, *args, **kwargs)

    model = tiny_vision()
    parts = (model.model.visual, *model.model.visual.blocks)
    for part in parts:
        add_hook_to_module(part, Counting(execution_device="cpu", io_same_device=True))
    assert same(halted(model), halted(tiny_vision()))
    assert [part._hf_hook.calls for part in parts] == [1] * len(parts)
    before = attributes(model)
    assert same(halted(model, ToMe(start=1)), halted(tiny_vision(), ToMe(start=1)))
    assert attributes(model) == before


def test_offloaded_weights() -> None:
    """Weights wait elsewhere and are brought for each part's own run."""
    model = tiny_vision("qwen3_vl")
    for part in model.model.visual.modules():
        if isinstance(part, (nn.Linear, nn.LayerNorm, nn.Conv3d)):
            weights = {f"{name}": value.detach().clone() for name, value in part.named_parameters()}
            hook = AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
            add_hook_to_module(part, hook)
    for policy in (DASH, ToMe(start=1), VisionZip()):
        assert same(halted(model, policy), halted(tiny_vision("qwen3_vl"), policy))


def test_the_model_s_own_way_to_image_features() -> None:
    model, images = tiny_vision("qwen3_vl"), GRID[[0, 1, 3]]
    with halting_vision(model, DASH) as tower, torch.no_grad():
        output = model.model.get_image_features(pixels(images), images)
    assert [len(features) for features in output.pooler_output] == [12, 4, 1]
    kept = [(~features[:, 0].isnan()).nonzero().squeeze(1).tolist() for features in output.pooler_output]
    assert kept == [places.tolist() for places in tower.report.kept]
    assert len(output.deepstack_features) == 3


def test_two_models_at_once_in_two_threads() -> None:
    policies = {"qwen2_vl": DASH, "qwen2_5_vl": ToMe(start=1), "qwen3_vl": VisionZip()}
    alone = {name: halted(tiny_vision(name), policy) for name, policy in policies.items()}

    def many(name: str) -> list[torch.Tensor]:
        model = tiny_vision(name)
        return [halted(model, policies[name]) for _ in range(5)]

    with ThreadPoolExecutor(len(policies)) as pool:
        together = dict(zip(policies, pool.map(many, policies), strict=True))
    assert all(same(features, alone[name]) for name in policies for features in together[name])


def test_a_tuple_in_place_of_an_output() -> None:
    model = tiny_vision()
    with halting_vision(model, DASH):
        states, features = encode(model, return_dict=False)
        expected = encode(model)
    assert same(states, expected.last_hidden_state)
    assert same(features, expected.pooler_output)


def test_a_policy_by_its_text() -> None:
    assert same(halted(tiny_vision(), "vision-dash:start=1,retain=0.5"), halted(tiny_vision()))


# The report


def test_there_is_no_report_before_the_first_image() -> None:
    with halting_vision(tiny_vision(), DASH) as tower, pytest.raises(InputError, match="give the model an image"):
        _ = tower.report


def test_the_report_tells_what_is_kept_and_what_each_block_ran_on() -> None:
    model = tiny_vision()
    with halting_vision(model, DASH) as tower:
        features = encode(model).pooler_output
    assert tower.report.groups == GROUPS
    kept = [(~own[:, 0].isnan()).nonzero().squeeze(1).tolist() for own in features.split(GROUPS)]
    assert [places.tolist() for places in tower.report.kept] == kept
    assert [(load.attended, load.mlp_groups) for load in tower.report.loads] == [(41, 41)] * 2 + [(21, 21)] * 4
    frames = [kept[0], kept[1], *([place for place in kept[2] if place // 12 == frame] for frame in (0, 1)), kept[3]]
    assert tower.report.loads[2].segments == tuple(len(frame) for frame in frames)


# What is refused


def test_a_model_without_a_known_tower_is_answered_with_the_known_ones() -> None:
    with (
        pytest.raises(UnsupportedError, match=r"'llama'.*known: gemma3, idefics3, llava, qwen2_5_vl, .*, smolvlm"),
        halting_vision(tiny(), DASH),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "vision", "reason"),
    [
        ("llava_onevision", "siglip_vision_model", "resamples features after its ViT"),
        ("llava", "pixtral", "its ViT is a 'pixtral', not CLIP or SigLIP"),
        ("gemma3", "mobilenet", "its ViT is a 'mobilenet', not SigLIP"),
    ],
)
def test_the_error_says_why_a_tower_is_not_supported(kind: str, vision: str, reason: str) -> None:
    model: Any = nn.Module()
    model.config = SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(model_type=vision))
    with pytest.raises(UnsupportedError, match=reason), halting_vision(model, DASH):
        pass


def test_something_that_is_no_model_of_the_host_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="its tower is not known"), halting_vision(nn.Linear(2, 2), DASH):
        pass


def test_a_language_model_without_its_tower_is_refused() -> None:
    model: Any = nn.Module()
    model.config = SimpleNamespace(model_type="qwen2_vl")
    with pytest.raises(UnsupportedError, match="give the whole model"), halting_vision(model, DASH):
        pass


def test_halting_twice_is_refused() -> None:
    model = tiny_vision()
    with halting_vision(model, DASH), pytest.raises(UnsupportedError, match="halting already"):
        halted(model)


def test_a_policy_that_does_not_fit_is_refused_before_anything_runs() -> None:
    model = tiny_vision()
    before = attributes(model)
    with pytest.raises(PolicyError, match="starts at block 5"), halting_vision(model, VisionDash(start=5)):
        pass
    assert attributes(model) == before


def test_a_policy_of_another_stage_is_refused() -> None:
    policy: Any = Dash()
    with pytest.raises(PolicyError, match="Dash does not act in the ViT"), halting_vision(tiny_vision(), policy):
        pass


@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
def test_outputs_of_single_blocks_are_refused(flag: str) -> None:
    model = tiny_vision()
    with halting_vision(model, DASH), pytest.raises(UnsupportedError, match=flag):
        encode(model, **{flag: True})
    with halting_vision(model, DASH):
        assert encode(model, **{flag: False}).pooler_output.isnan().any()


def test_outputs_of_single_blocks_that_the_configuration_asks_for_are_refused() -> None:
    model = tiny_vision()
    model.model.visual.config.output_hidden_states = True
    with halting_vision(model, DASH), pytest.raises(UnsupportedError, match="output_hidden_states"):
        encode(model)


@pytest.mark.parametrize("part", ["model", "tower"])
def test_a_compiled_model_is_refused(part: str) -> None:
    model = tiny_vision()
    (model if part == "model" else model.model.visual).compile()
    with pytest.raises(UnsupportedError, match="compile its blocks"), halting_vision(model, DASH):
        pass


def test_gradient_checkpointing_is_refused_while_training() -> None:
    model = tiny_vision()
    model.gradient_checkpointing_enable()
    with halting_vision(model, DASH):
        assert encode(model).pooler_output.isnan().any()
        model.train()
        with pytest.raises(UnsupportedError, match=r"call model\.eval"):
            encode(model)
