"""Vision-language models that halt, against the masking oracle, alone and in batches."""

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import (
    BothEnds,
    Dart,
    Dash,
    DashLayer,
    Dense,
    FastV,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    Policy,
    Progressive,
    Random,
    SparseVLM,
    Uniform,
    V2Drop,
    WindowAttention,
    halting,
)
from helpers.flash import flash_attention
from helpers.frozen import frozen
from helpers.oracle import Feed, Oracle
from helpers.tiny_vision import (
    BATCH,
    MROPE,
    ROWS,
    SEVERAL,
    VISION,
    Row,
    tiny_vision,
    vision_prompts,
)
from helpers.vision_ways import APART, HALF, STEPS, THREE, TOLERANCE, VISUAL, gap, generated, logits_of, more


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VISION)
def test_visual_tokens_halt(name: str, attention: str, rows: tuple[Row, ...]) -> None:
    assert gap(name, attention, Dash(**VISUAL), rows) < TOLERANCE


@pytest.mark.parametrize("name", VISION)
def test_all_tokens_halt(name: str) -> None:
    assert gap(name, "sdpa", Dash(**HALF | {"start": 0}), BATCH) < TOLERANCE


@pytest.mark.parametrize("policy", [APART, THREE], ids=["apart", "three"])
@pytest.mark.parametrize("name", VISION)
def test_stages_of_different_scopes(name: str, policy: Progressive) -> None:
    assert gap(name, "sdpa", policy, BATCH) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_each_scope_has_its_own_ratio_at_one_layer(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, APART) as halted:
        prompts.feed(Feed(model))
    assert [layer for layer, _ in halted.report.stages] == [1]
    for row, kept in enumerate(halted.report.kept):
        visual = prompts.visual[row, prompts.mask[row].bool()]
        images, words = int(visual.sum()), int((~visual).sum())
        assert int(visual[kept].sum()) == images - round(0.6 * images)
        assert int((~visual[kept]).sum()) == words - round(0.3 * (words - 5))


EVERY = {
    "dash-inside": Dash(**VISUAL, boundary="attention"),
    "dash-layer": DashLayer(**VISUAL),
    "key-norm": KeyNorm(**VISUAL),
    "last-token-attention": LastTokenAttention(**VISUAL),
    "window-attention": WindowAttention(**VISUAL, window=3),
    "max-sim": MaxSim(**VISUAL, window=3, kernel=5),
    "both-ends": BothEnds(**VISUAL, best=2, reach=8),
    "random": Random(**VISUAL),
    "uniform": Uniform(**VISUAL),
    "text": Dash(**HALF | {"scope": "text"}),
    "fastv": FastV(),
    "dart": Dart(),
    "v2drop": V2Drop(pruning_ratio=0.3, second_ratio=0.6, third_ratio=0.9),
    "sparsevlm": SparseVLM(second_start=2, third_start=4),
}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava"])
@pytest.mark.parametrize("policy", EVERY)
def test_every_policy(policy: str, name: str) -> None:
    assert gap(name, "sdpa", EVERY[policy], BATCH) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_frozen_kv(name: str) -> None:
    assert gap(name, "sdpa", frozen(Dash(**VISUAL)), BATCH) < TOLERANCE


@pytest.mark.parametrize("start", [0, 1, 2])
def test_deepstack_features_follow_the_kept_tokens(start: int) -> None:
    assert gap("qwen3_vl", "sdpa", Dash(**VISUAL | {"start": start, "pruning_ratio": 0.9}), BATCH) < TOLERANCE


@pytest.mark.parametrize("name", VISION)
def test_generate_equals_the_oracle(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, Dash(**VISUAL)) as halted:
        ours = generated(model, prompts)
    blocks = prompts.blocks if name == "gemma3" else None
    oracle = Oracle(model, VISION[name].windows, halted.report, blocks=blocks)
    theirs = [prompts.feed(oracle)[:, -1]]
    width = prompts.ids.shape[1]
    theirs += [oracle(ours.sequences[:, [place]])[:, -1] for place in range(width, width + STEPS - 1)]
    assert max(float((a - b).abs().max()) for a, b in zip(ours.logits, theirs, strict=True)) < TOLERANCE


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the decoder of a tiny model run on a stand-in for FlashAttention, whose kernels no CPU has."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)

    def make(name: str) -> Any:
        model = tiny_vision(name)
        model.get_decoder().config._attn_implementation = "flash_attention_2"
        return model

    return make


@pytest.mark.parametrize("policy", [Dense(), Dash(**VISUAL), APART], ids=["dense", "visual", "apart"])
@pytest.mark.parametrize("name", [*MROPE, "llava", "idefics3"])
def test_flash_attention(name: str, policy: Policy | Progressive, flash: Any) -> None:
    prompts = vision_prompts(tiny_vision(name), name, BATCH)
    ours, theirs = flash(name), tiny_vision(name)
    with halting(ours, policy), halting(theirs, policy):
        pairs = zip(logits_of(Feed(ours), prompts), logits_of(Feed(theirs), prompts), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < TOLERANCE


@pytest.mark.parametrize("policy", [Dash(**VISUAL), APART], ids=["visual", "apart"])
@pytest.mark.parametrize("name", VISION)
def test_batch_mates(name: str, policy: Policy | Progressive) -> None:
    model = tiny_vision(name)
    with halting(model, policy) as halted:
        together = logits_of(Feed(model), vision_prompts(model, name, BATCH))
        kept = halted.report.kept
        for row in range(len(BATCH)):
            tokens = more(len(BATCH))[row : row + 1]
            feed, prompts = Feed(model), vision_prompts(model, name, BATCH, only=row)
            alone = [prompts.feed(feed), *(feed(tokens[:, [step]]) for step in range(3)), feed(tokens[:, 3:])]
            assert torch.equal(halted.report.kept[0], kept[row])
            assert max(float((a[row] - b[0]).abs().max()) for a, b in zip(together, alone, strict=True)) < TOLERANCE


def test_a_prompt_too_short_stays_whole_beside_one_that_halts() -> None:
    assert gap("qwen2_vl", "sdpa", Dash(**VISUAL), BATCH, min_prompt_tokens=30) < TOLERANCE


def test_a_row_without_images_stays_whole_beside_one_with_images() -> None:
    rows: tuple[Row, ...] = (*SEVERAL, (25,))
    assert gap("qwen2_vl", "sdpa", Dash(**VISUAL), rows) < TOLERANCE
    model = tiny_vision()
    with halting(model, Dash(**VISUAL)) as halted:
        vision_prompts(model, "qwen2_vl", rows).feed(Feed(model))
    assert halted.report.lengths[1] == (25, 25, 25, 25, 25, 1)
