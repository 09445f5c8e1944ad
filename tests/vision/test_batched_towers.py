"""ViTs that run batches, under `halting_vision`: equal to the stock tower where all stays, to the oracle where not."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import Dense, halting
from deltahalt.vision import (
    VISION_POLICIES,
    PruMergePlus,
    UniformGroups,
    VisionDash,
    VisionPolicy,
    VisionZip,
    halting_vision,
)
from deltahalt.vision.policy import GroupView
from helpers import batched_oracle
from helpers.batched_oracle import Patches, tower
from helpers.batched_towers import (
    CLOSE,
    DEPTH,
    IMAGES,
    TOKENS,
    TOWERS,
    encode,
    halted,
    home,
    images_of,
    left_of,
    model_of,
    stock,
)
from helpers.tiny_vision import BATCH, features_of, vision_prompts
from helpers.vit_policies import HALTING, LastGroups, keeping

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
