"""A prefill in pieces equals one of the whole prompt: logits, cache and report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import Dense, Policy, Progressive, Report, halting
from deltahalt.host.compat import CACHE
from helpers.flash import flash_attention
from helpers.oracle import Feed
from helpers.pieces import LENGTHS, POLICIES, SERVING, TOKENS
from helpers.tiny import LAYERS, SLIDING_VARIANTS, VARIANTS, VOCAB, WINDOW, prompts, tiny
from helpers.tiny_vision import SEVERAL, tiny_vision, vision_prompts

TOLERANCE = 1e-5


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def logits_of(feed: Feed, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """Of a prefill, of single tokens, and of a later turn."""
    more = torch.randint(1, VOCAB, (len(lengths), 26), generator=torch.Generator().manual_seed(1))
    parts = [more[:, :1], more[:, 1:2], more[:, 2:]]
    return [feed(*prompts(*lengths), logits_to_keep=1), *(feed(part, logits_to_keep=1) for part in parts)]


def same_caches(ours: DynamicCache, theirs: DynamicCache, lengths: tuple[int, ...]) -> bool:
    """Whether each layer holds the same K and V of the same tokens. Rows are right-aligned; padding may differ."""
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        assert type(layer) is type(other)
        assert layer.get_seq_length() == other.get_seq_length()
        for row in range(len(lengths)):
            kept = min(lengths) // 3  # no policy of these tests leaves fewer tokens
            for one, two in ((layer.keys, other.keys), (layer.values, other.values)):
                assert one.shape == two.shape
                if not near(one[row, :, -kept:], two[row, :, -kept:]):
                    return False
    return True


def same_reports(ours: Report, theirs: Report) -> bool:
    assert (ours.prompts, ours.loads, ours.reason) == (theirs.prompts, theirs.loads, theirs.reason)
    assert (ours.cache_bytes, ours.full_cache_bytes) == (theirs.cache_bytes, theirs.full_cache_bytes)
    for one, two in zip(ours.stages, theirs.stages, strict=True):
        assert one[0] == two[0]
        if not all(torch.equal(kept, other) for kept, other in zip(one[1], two[1], strict=True)):
            return False
    scores = (
        [scored for stage in ours.scores for scored in stage],
        [scored for stage in theirs.scores for scored in stage],
    )
    return all(torch.allclose(one, two, rtol=1e-4, atol=1e-5) for one, two in zip(*scores, strict=True))


def assert_same(make: Callable[[], Any], policy: Policy | Progressive, lengths: tuple[int, ...], size: int = 5) -> None:
    """A run in pieces against a run of the whole prompt: prefill, generated tokens, and a later turn."""
    logits, caches, reports = [], [], []
    for piece_tokens in (None, size):
        model = make()
        with halting(model, policy, piece_tokens=piece_tokens) as halted:
            feed = Feed(model)
            logits.append(logits_of(feed, lengths))
        caches.append(feed.cache)
        reports.append(halted.report)
    assert all(near(whole, pieced) for whole, pieced in zip(*logits, strict=True))
    assert same_caches(caches[0], caches[1], lengths)
    assert same_reports(reports[0], reports[1])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_halted_equals_the_stock_model(variant: str, attention: str, lengths: tuple[int, ...]) -> None:
    stock = Feed(tiny(variant, attention))
    expected = logits_of(stock, lengths)
    for size in (1, 5, 7, TOKENS, TOKENS + 3):
        model = tiny(variant, attention)
        with halting(model, Dense(), piece_tokens=size):
            feed = Feed(model)
            logits = logits_of(feed, lengths)
        assert all(near(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))
        assert same_caches(feed.cache, stock.cache, lengths)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_halting(variant: str, policy: str, lengths: tuple[int, ...]) -> None:
    if policy.startswith("window-attention") and all(VARIANTS[variant].windows):
        pytest.skip("the policy refuses to decide where no layer sees the whole prompt")
    assert_same(lambda: tiny(variant), POLICIES[policy], lengths)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_halting_in_pieces_of_one_token(variant: str, policy: str) -> None:
    assert_same(lambda: tiny(variant), POLICIES[policy], (TOKENS, 29), size=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", SERVING)
@pytest.mark.parametrize("variant", ["llama", "qwen3", "phi3-partial"])
def test_halted_tokens_whose_kv_is_read(variant: str, policy: str, attention: str) -> None:
    for lengths in LENGTHS:
        assert_same(lambda: tiny(variant, attention), SERVING[policy], lengths)


@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
@pytest.mark.parametrize("size", [WINDOW - 1, WINDOW, WINDOW + 1, 3])
def test_windows(variant: str, size: int) -> None:
    assert_same(lambda: tiny(variant), POLICIES["key-norm"], (TOKENS, 29), size=size)


@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_a_cache_that_knows_of_no_windows(variant: str) -> None:
    """It keeps every token also in layers with a window."""
    expected = logits_of(Feed(tiny(variant), DynamicCache()), (TOKENS, 29))
    model = tiny(variant)
    with halting(model, Dense(), piece_tokens=5):
        feed = Feed(model, DynamicCache())
        assert all(near(*both) for both in zip(logits_of(feed, (TOKENS, 29)), expected, strict=True))
    assert {layer.keys.shape[-2] for layer in feed.cache.layers} == {TOKENS + 26}


@pytest.mark.parametrize("policy", [Dense(), POLICIES["max-sim"]], ids=["dense", "max-sim"])
@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_generate(variant: str, policy: Policy) -> None:
    ids, mask = prompts(TOKENS, 29)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    answers = []
    for size in (None, 5):
        model = tiny(variant)
        with halting(model, policy, piece_tokens=size):
            answers.append(model.generate(ids, **options))
    assert torch.equal(*answers)


@pytest.mark.parametrize("variant", ["llama", "gemma3", "mistral-sliding"])
def test_a_later_turn_that_is_padded_itself(variant: str) -> None:
    """Its padding stands between keys, so that a piece needs a mask."""
    calls = [prompts(TOKENS, 29), prompts(14, 9, seed=1), prompts(12, 12, seed=2)]
    logits = []
    for size in (None, 5):
        model = tiny(variant)
        with halting(model, POLICIES["dash"], piece_tokens=size):
            feed = Feed(model)
            logits.append([feed(*call, logits_to_keep=1) for call in calls])
    assert all(near(*both) for both in zip(*logits, strict=True))


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
@torch.no_grad()
def test_without_a_cache(variant: str) -> None:
    model, (ids, mask) = tiny(variant), prompts(TOKENS, 29)
    expected = model(ids, mask, use_cache=False, logits_to_keep=1).logits
    with halting(model, Dense(), piece_tokens=5):
        output = model(ids, mask, use_cache=False, logits_to_keep=1)
    assert near(output.logits, expected)
    assert getattr(output, CACHE) is None


def test_all_logits_of_a_prompt_of_embeddings_which_stay_as_they_are() -> None:
    model, (ids, _) = tiny("gemma3"), prompts(TOKENS)  # scales its embeddings
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        before = embeds.clone()
        expected = model(inputs_embeds=embeds).logits
        with halting(model, Dense(), piece_tokens=5):
            assert near(model(inputs_embeds=embeds).logits, expected)
    assert torch.equal(embeds, before)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_images(name: str) -> None:
    logits = []
    for size in (None, 5):
        model = tiny_vision(name)
        with halting(model, POLICIES["dash"], piece_tokens=size):
            logits.append(vision_prompts(model, name, SEVERAL).feed(Feed(model)))
    assert near(*logits)


@pytest.mark.parametrize("lengths", [(TOKENS,), (TOKENS, 29)], ids=str)
@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_flash_attention(variant: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)

    def make() -> Any:
        model = tiny(variant)
        model.config._attn_implementation = "flash_attention_2"
        return model

    assert_same(make, POLICIES["dash"], lengths)


def test_offloaded_layers(tmp_path: Path) -> None:
    """Their weights come once a layer, not once a piece."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(LAYERS)}

    def make() -> Any:
        model = tiny()
        whole = [type(model.model.layers[0]).__name__]
        return dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, preload_module_classes=whole)

    assert_same(make, POLICIES["dash"], (TOKENS, 29))


def test_compiled_layers() -> None:
    def make() -> Any:
        model = tiny()
        for layer in model.model.layers:
            layer.compile(backend="eager", dynamic=True)
        return model

    assert_same(make, POLICIES["dash"], (TOKENS,))


def test_hooks_on_a_layer_see_the_whole_prompt_once() -> None:
    model, seen = tiny(), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, args, output: seen.append((args[0].shape[1], output.shape[1])))
    with halting(model, POLICIES["dash"], piece_tokens=5):
        Feed(model)(prompts(TOKENS)[0], logits_to_keep=1)
    kept = POLICIES["dash"].kept(TOKENS)
    assert seen == [(TOKENS, TOKENS), (TOKENS, kept), *[(kept, kept)] * (LAYERS - 3), (1, 1)]
