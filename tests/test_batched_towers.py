"""ViTs that run batches, under `halting_vision`: equal to the stock tower where all stays, to the oracle where not."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import batched_oracle
from batched_oracle import SIDES, Patches, tower
from deltahalt import Dense, UnsupportedError, halting
from deltahalt.vision import (
    VISION_POLICIES,
    PruMergePlus,
    ToMe,
    UniformGroups,
    VisionDash,
    VisionPolicy,
    VisionZip,
    halting_vision,
)
from deltahalt.vision.policy import GroupView
from test_marks import features_of
from test_vit_policies import (
    each_merging,
    match_naively,
    mean,
    prumerge_naively,
    visionzip_naively,
)
from test_vit_towers import HALTING, LastGroups, keeping
from tiny import attributes
from tiny_vision import BATCH, tiny_vision, vision_prompts

TOWERS = list(SIDES)
DEPTH, IMAGES, TOKENS = 6, 3, 16
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
CLOSE: dict[str, Any] = {"atol": 5e-5, "rtol": 1e-4}


def model_of(name: str, attention: str = "sdpa", **whole: Any) -> Any:
    """A tiny model, a name of TOWERS. whole: for its configuration."""
    if name == "llava-siglip":
        whole = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"} | whole
        return tiny_vision("llava", attention, tower=SIGLIP, whole=whole)
    return tiny_vision(name, attention, whole=whole)


def images_of(name: str, count: int = IMAGES) -> torch.Tensor:
    """Random images, [count, 3, height, width]."""
    side = 32 if SIDES[name] == 2 else 16
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def home(model: Any) -> Any:
    """The host's module whose forward is replaced."""
    return model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.vision_model


def encode(name: str, model: Any, images: torch.Tensor | None = None) -> Any:
    """What the host makes of a batch of images."""
    images = images_of(name) if images is None else images
    with torch.no_grad():
        return model.model.get_image_features(images[None] if "vision_model" in dir(model.model) else images)


def halted(name: str, model: Any, policy: VisionPolicy, *images: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Features [images, TOKENS, D] and the report."""
    with halting_vision(model, policy) as seam:
        output = encode(name, model, *images)
    return torch.cat([part.flatten(0, -2) for part in features_of(output)]).unflatten(0, (-1, TOKENS)), seam.report


def stock(name: str, model: Any) -> torch.Tensor:
    return torch.cat([part.flatten(0, -2) for part in features_of(encode(name, model))]).unflatten(0, (-1, TOKENS))


def left_of(features: torch.Tensor) -> list[list[int]]:
    """Places of the features that are there, by image."""
    gone = features.isnan()
    assert torch.equal(gone.any(dim=-1), gone.all(dim=-1))
    return [(~rows).nonzero().squeeze(1).tolist() for rows in gone[..., 0]]


# Nothing halted


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_that_keeps_all_equals_the_stock_tower(name: str, policy: Any, attention: str) -> None:
    model = model_of(name, attention)
    expected, output = encode(name, model), None
    with halting_vision(model, policy(retain=1)) as seam:
        output = encode(name, model)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    for ours, theirs in zip(features_of(output), features_of(expected), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(output.hidden_states or (), expected.hidden_states or (), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert seam.report.groups == (TOKENS,) * IMAGES
    assert seam.report.loads == seam.report.full_loads
    assert seam.report.speedup_bound == 1


@pytest.mark.parametrize("policy", [VisionZip(contextual=0, retain=0.4), PruMergePlus(neighbours=0, retain=0.4)])
@pytest.mark.parametrize("name", TOWERS)
def test_a_feature_that_takes_up_no_other_is_the_stock_feature_of_its_place(name: str, policy: VisionPolicy) -> None:
    """The block that these methods look at is opened, and must compute what it does when closed."""
    model = model_of(name)
    expected, (features, report) = stock(name, model), halted(name, model, policy)
    for ours, theirs, left, kept in zip(features, expected, left_of(features), report.kept, strict=True):
        assert left == kept.tolist()
        assert len(left) == 6
        assert torch.equal(ours[left], theirs[left])


# Places in the prompt


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "smolvlm"])
def test_kept_features_stand_at_their_own_placeholders_and_the_others_are_left_out(name: str, policy: Any) -> None:
    """What enters the decoder's first layer is the prompt with features in their places, less those that are gone."""
    model, chosen, seen = model_of(name), keeping(policy, 0.4), []
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, Dense(), vision=chosen) as under, torch.no_grad():
        output = model.model.get_image_features(prompts.inputs["pixel_values"])
        hook = model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(**prompts.call(), logits_to_keep=1)
        hook.remove()
    features = torch.cat([part.flatten(0, -2) for part in features_of(output)])
    embeds = model.get_input_embeddings()(prompts.ids)
    embeds[prompts.visual] = features
    places = iter(under.vision_report.kept)
    for row, (ids, mask) in enumerate(zip(prompts.ids, prompts.mask.bool(), strict=True)):
        there = mask & ~embeds[row].isnan().any(dim=-1)
        assert torch.equal(seen[0][row, -int(there.sum()) :], embeds[row, there])
        visual = prompts.visual[row].nonzero().squeeze(1)
        own = [visual[TOKENS * image + next(places)] for image in range(len(visual) // TOKENS)]
        kept = torch.cat([(mask & ~prompts.visual[row]).nonzero().squeeze(1), *own]).sort().values
        assert torch.equal(under.report.kept[row] + (~mask).sum(), kept)
        assert len(ids) - len(kept) == (~mask).sum() + 10 * len(own)


# Halting, against the oracle


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("policy", [*HALTING, LastGroups])
@pytest.mark.parametrize("name", TOWERS)
def test_halting_equals_a_tower_whose_deeper_blocks_cannot_read_what_halted(name: str, policy: Any, start: int) -> None:
    """Block 4 is the one whose output LLaVA's features are made of."""
    model = model_of(name)
    features, report = halted(name, model, policy(retain=0.4, start=start))
    for image, ours, kept in zip(images_of(name), features, report.kept, strict=True):

        def halt(where: str, index: int, patches: Patches, kept: torch.Tensor = kept) -> Patches:
            if (where, index) != ("block", start):
                return patches
            stays = torch.isin(batched_oracle.token_of(name, len(patches.places) - patches.lead), kept).float()
            sizes = torch.cat([torch.ones(patches.lead), stays])
            return Patches(patches.states, patches.places, sizes, patches.queries, patches.keys)

        with torch.no_grad():
            found = batched_oracle.run(name, model, image, halt)
            states = batched_oracle.outgoing(name, model, found)
            expected = batched_oracle.features(name, model, found, states)
        assert left_of(ours[None]) == [kept.tolist()]
        torch.testing.assert_close(ours[kept], expected[kept], **CLOSE)
    attended = [load.attended for load in report.loads]
    assert attended == [IMAGES * TOKENS] * (start + 1) + [IMAGES * 6] * (DEPTH - 1 - start)


def test_vision_dash_keeps_what_attention_updates_most() -> None:
    """The score of a square of patches, against updates of the oracle's attention."""
    for name in TOWERS:
        model = model_of(name)
        _, report = halted(name, model, VisionDash(retain=0.4, start=1))
        for image, kept in zip(images_of(name), report.kept, strict=True):
            with torch.no_grad():
                found = batched_oracle.run(name, model, image, lambda _, __, patches: patches)
                update, *_ = batched_oracle.attention(tower(model).encoder.layers[1], found[1])
            norms = update[found[1].lead :].norm(dim=-1)
            scores = torch.zeros(TOKENS).index_add(0, batched_oracle.token_of(name, len(norms)), norms)
            assert kept.tolist() == sorted(scores.argsort(descending=True)[:6].tolist())


@pytest.mark.parametrize("name", TOWERS)
def test_a_method_is_shown_what_the_block_computed(name: str) -> None:
    views = []

    @dataclass(frozen=True, kw_only=True)
    class Look(LastGroups):
        def select(self, view: GroupView, states: torch.Tensor, count: int) -> torch.Tensor:
            views.append((view, states))
            return super().select(view, states, count)

    model, seen = model_of(name), {}
    layers = tower(model).encoder.layers
    halted(name, model, Look(start=1))

    def look(where: str, index: int, patches: Patches) -> Patches:
        seen[where, index] = patches
        return patches

    for number, (image, (view, states)) in enumerate(zip(images_of(name), views, strict=True)):
        with torch.no_grad():
            batched_oracle.run(name, model, image, look)
        entering, between, leaving = seen["block", 0], seen["attention", 1], seen["block", 1]
        lead, tokens = entering.lead, batched_oracle.token_of(name, len(entering.places) - entering.lead)
        rows = lead + tokens.argsort(stable=True)  # patches token by token, each in raster order
        pairs = [
            (view.hidden_in.flatten(0, 1), entering.states[rows]),
            (view.update.flatten(0, 1), (between.states - entering.states)[rows]),
            (states.flatten(0, 1), leaving.states[rows]),
            (view.normed(states).flatten(0, 1), layers[2].layer_norm1(leaving.states[rows])),
            (view.raw_keys().transpose(0, 1), between.keys[rows]),
            (view.keys().transpose(0, 1), between.keys[rows]),
            (view.queries().transpose(0, 1), between.queries[rows]),
            (view.class_keys.transpose(0, 1), between.keys[:lead]),
            (view.class_queries.transpose(0, 1), between.queries[:lead]),
        ]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, **CLOSE)
        assert lead == (name == "llava")
        assert view.places.tolist() == list(range(TOKENS * number, TOKENS * (number + 1)))
        assert view.segments == (TOKENS,)
        assert view.scaling == 16**-0.5


# Methods behind the tower


def attention_naively(patches: Patches, tokens: torch.Tensor) -> list[float]:
    """What the class token pays to each visual token; without one, what it receives from all patches."""
    logits = torch.einsum("qhd,khd->hqk", patches.queries, patches.keys) * 16**-0.5
    weights = logits.softmax(dim=-1).mean(dim=0)
    paid = weights[0, 1:] if patches.lead else weights.sum(dim=0)
    return torch.zeros(TOKENS).index_add(0, tokens, paid).tolist()


def looked_at(name: str, model: Any, image: torch.Tensor) -> tuple[list[Patches], Patches]:
    """The rows before the first block and behind each, and those behind the attention of the last but one."""
    seen = []

    def look(where: str, index: int, patches: Patches) -> Patches:
        if (where, index) == ("attention", DEPTH - 2):
            seen.append(patches)
        return patches

    return batched_oracle.run(name, model, image, look), seen[0]


@pytest.mark.parametrize(
    ("policy", "naively"),
    [
        (VisionZip(retain=0.5, contextual=0.4), partial(visionzip_naively, count=8, targets=3)),
        (PruMergePlus(retain=0.4, neighbours=3), partial(prumerge_naively, count=6, neighbours=3)),
    ],
    ids=["visionzip", "prumerge-plus"],
)
@pytest.mark.parametrize("name", TOWERS)
def test_a_method_behind_the_tower_equals_the_same_by_hand(name: str, policy: VisionPolicy, naively: Any) -> None:
    model = model_of(name)
    features, report = halted(name, model, policy)
    for image, ours, kept in zip(images_of(name), features, report.kept, strict=True):
        with torch.no_grad():
            found, looked = looked_at(name, model, image)
            states = batched_oracle.outgoing(name, model, found)
        lead = found[0].lead
        tokens = batched_oracle.token_of(name, len(states) - lead)
        members = [lead + (tokens == token).nonzero().squeeze(1) for token in range(TOKENS)]
        keys = [mean(looked.keys[rows].mean(dim=1).tolist()) for rows in members]
        left = naively(attention_naively(looked, tokens), keys, states[torch.stack(members)])
        for token, group in left.items():
            states[members[token]] = group
        with torch.no_grad():
            expected = batched_oracle.features(name, model, found, states)
        assert kept.tolist() == list(left)
        torch.testing.assert_close(ours[kept], expected[kept], **CLOSE)


# Merging


def merging(name: str, policy: Any, fuse: Callable[..., Any], prunes: set[int]) -> batched_oracle.Change:
    """What merges behind the attention of each block. prunes: blocks that drop."""

    def change(where: str, index: int, patches: Patches) -> Patches:
        lead = patches.lead
        unit = SIDES[name] ** 2
        active = (len(patches.places) - lead) // unit
        count = max(policy.kept(TOKENS), math.floor(policy.step * active))
        if where != "attention" or index < policy.start or count >= active:
            return patches
        every = batched_oracle.token_of(name, TOKENS * unit)
        tokens = every[patches.places[lead:]]
        squares = [(lead + (tokens == token).nonzero().squeeze(1)).tolist() for token in tokens.unique().tolist()]
        keys = [mean(patches.keys[rows].mean(dim=1).tolist()) for rows in squares]
        merged = match_naively(keys, active - count)
        states, sizes = fuse(
            [patches.states[rows] for rows in squares], [float(patches.sizes[rows[0]]) for rows in squares], merged
        )
        left = [square for number, square in enumerate(squares) if number not in merged]
        if index in prunes:
            states, sizes = [patches.states[rows] for rows in left], [1.0] * len(left)
        full, counts = patches.states.clone(), patches.sizes.clone()
        for rows, state, size in zip(left, states, sizes, strict=True):
            full[rows], counts[rows] = state, size
        rows = torch.tensor(sorted([*range(lead), *itertools.chain(*left)]))
        return Patches(full[rows], patches.places[rows], counts[rows], patches.queries[rows], patches.keys[rows])

    return change


@each_merging
@pytest.mark.parametrize("name", TOWERS)
def test_merging_in_a_tower_equals_merging_by_hand(name: str, policy: Any, fuse: Any, prunes: set[int]) -> None:
    model = model_of(name)
    assert policy.schedule(TOKENS) == [11, 7, 5]
    features, report = halted(name, model, policy)
    for image, ours, kept in zip(images_of(name), features, report.kept, strict=True):
        with torch.no_grad():
            found = batched_oracle.run(name, model, image, merging(name, policy, fuse, prunes))
            states = batched_oracle.outgoing(name, model, found)
            expected = batched_oracle.features(name, model, found, states)
        tokens = batched_oracle.token_of(name, len(found[0].places) - found[0].lead)
        left = tokens[found[-1].places[found[0].lead :]].unique().tolist()
        assert kept.tolist() == left
        torch.testing.assert_close(ours[kept], expected[kept], **CLOSE)


# Every policy


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", TOWERS)
def test_an_image_is_encoded_the_same_alone_and_in_a_batch(name: str, policy: Any) -> None:
    model, chosen = model_of(name), keeping(policy, 0.35)
    features, report = halted(name, model, chosen)
    assert [len(kept) for kept in report.kept] == [6] * IMAGES
    for image, together, kept in zip(images_of(name), features, report.kept, strict=True):
        alone, report_alone = halted(name, model, chosen, image[None])
        assert torch.equal(kept, report_alone.kept[0])
        torch.testing.assert_close(together, alone[0], equal_nan=True, **CLOSE)


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", TOWERS)
def test_half_precision(name: str, policy: Any) -> None:
    model = model_of(name).to(torch.bfloat16)
    features, report = halted(name, model, keeping(policy, 0.35), images_of(name).to(torch.bfloat16))
    assert features.dtype == torch.bfloat16
    assert left_of(features) == [kept.tolist() for kept in report.kept]


def plain_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """What FlashAttention computes where there is no padding, [B, heads, s, d] -> [B, s, heads, d]."""
    assert mask is None
    return ((query @ key.transpose(2, 3) * scaling).softmax(dim=-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize("policy", ["vision-dash", "tome", "prumerge-plus"])
@pytest.mark.parametrize("name", TOWERS)
def test_flash_attention(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", plain_attention)
    model, chosen = model_of(name), keeping(VISION_POLICIES[policy], 0.35)
    expected, _ = halted(name, model, chosen)
    tower(model).config._attn_implementation = "flash_attention_2"
    features, _ = halted(name, model, chosen)
    torch.testing.assert_close(features, expected, equal_nan=True, **CLOSE)


# FLOPs


@pytest.mark.parametrize("policy", VISION_POLICIES.values())
@pytest.mark.parametrize("name", TOWERS)
def test_the_report_counts_the_flops_that_torch_counts(name: str, policy: Any) -> None:
    """Of the tower without what projects its output. All but the methods' own: scores and similarities."""
    model, images = model_of(name, "eager"), images_of(name)
    with FlopCounterMode(display=False) as full, torch.no_grad():
        home(model)(pixel_values=images)
    products = sdpa_kernel(SDPBackend.MATH)  # ToMe's attention too, in steps that are counted
    with halting_vision(model, keeping(policy, 0.35)) as seam, products, torch.no_grad():  # noqa: SIM117
        with FlopCounterMode(display=False) as counted:
            home(model)(pixel_values=images)
    assert seam.report.full_flops == full.get_total_flops()
    own = counted.get_total_flops() - seam.report.flops
    assert 0 <= own < 0.05 * seam.report.full_flops
    if policy in (VisionDash, UniformGroups):
        assert own == 0


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
        with pytest.raises(UnsupportedError, match="padding inside an image"):
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
