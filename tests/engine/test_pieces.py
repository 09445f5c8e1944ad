"""A prefill in pieces equals one of the whole prompt: logits, cache and report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import (
    BothEnds,
    Dash,
    DashFrozen,
    DashLayer,
    Dense,
    Forecast,
    InputError,
    KeyNorm,
    MaxSim,
    Policy,
    Progressive,
    Report,
    SingleInputKV,
    UnsupportedError,
    WindowAttention,
    applying,
    halting,
)
from deltahalt.engine import pieces
from deltahalt.engine.layer_kv import LayerKV
from deltahalt.host import lower_right
from deltahalt.host.compat import CACHE
from helpers.flash import flash_attention
from helpers.memory import Largest
from helpers.oracle import Feed
from helpers.tiny import LAYERS, SLIDING_VARIANTS, VARIANTS, VOCAB, WINDOW, attributes, prompts, tiny
from helpers.tiny_vision import SEVERAL, tiny_vision, vision_prompts

TOLERANCE = 1e-5
TOKENS = 40
LENGTHS = [(TOKENS,), (TOKENS, 29)]
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
POLICIES = {
    "max-sim": MaxSim(**HALF, window=3, kernel=5),
    "dash": Dash(**HALF),
    "dash-layer": DashLayer(**HALF),
    "window-attention": WindowAttention(**HALF, window=3, ahead=2),
    "window-attention-2-layers": WindowAttention(**HALF | {"start": 2}, window=3, layers=2),
    "key-norm": KeyNorm(**HALF, boundary="attention"),
    "both-ends": BothEnds(**HALF, best=2, reach=0),
    "two stages": Progressive(
        [
            KeyNorm(start=1, pruning_ratio=0.3, keep_first=2, keep_last=4),
            Dash(start=3, pruning_ratio=0.7, keep_first=1, keep_last=3, boundary="attention"),
        ]
    ),
}
EXIT = SingleInputKV(start=3, keep_last=4)
SERVING = {
    "frozen": DashFrozen(**HALF),
    "frozen inside": DashFrozen(**HALF, boundary="attention"),
    "an exit": EXIT,
    "two exits": Progressive(
        [SingleInputKV(start=1, keep_last=4, pruning_ratio=0.5), SingleInputKV(start=3, keep_last=4)]
    ),
    "a forecast": Forecast(start=2, keep_last=9),
}


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
    return all(near(one, two) for one, two in zip(*scores, strict=True))


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
    assert seen == [(TOKENS, TOKENS), (TOKENS, kept), *[(kept, kept)] * (LAYERS - 2)]


# Memory


@contextmanager
def watched_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, int, int]]]:
    """What the host's sdpa attention gets: the mask, and the numbers of queries and keys."""
    attend, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def record(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((attention_mask, query.shape[2], key.shape[2]))
        return attend(module, query, key, value, attention_mask, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
        yield seen


@pytest.mark.parametrize("policy", [Dense(), POLICIES["dash"], SERVING["a forecast"]], ids=lambda policy: policy.name)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sdpa_needs_no_mask(policy: Policy, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if len(lengths) > 1 and policy is SERVING["a forecast"]:
        pytest.skip("the halted tokens are padded, and stand before others")
    model = tiny()
    with halting(model, policy, piece_tokens=5), watched_masks(monkeypatch) as seen:
        Feed(model)(*prompts(*lengths), logits_to_keep=1)
    assert all(mask is None and queries <= 5 for mask, queries, _ in seen)
    assert [keys for _, _, keys in seen[:8]] == list(range(5, TOKENS + 1, 5))


def test_a_window_needs_a_mask_of_what_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mistral-sliding")
    with halting(model, Dense(), piece_tokens=5), watched_masks(monkeypatch) as seen:
        Feed(model)(*prompts(TOKENS), logits_to_keep=1)
    assert [tuple(mask.shape[2:]) for mask, *_ in seen[:8]] == [(5, 5), (5, 10), *[(5, 5 + WINDOW - 1)] * 6]


def test_kv_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written, update = [], LayerKV.update

    def record(held: LayerKV, *args: Any, **kwargs: Any) -> Any:
        result = update(held, *args, **kwargs)
        written.append((held.index, held.keys.data_ptr(), held.values.data_ptr()))
        return result

    monkeypatch.setattr(LayerKV, "update", record)
    model = tiny()
    with halting(model, Dense(), piece_tokens=5):
        feed = Feed(model)
        feed(*prompts(TOKENS), logits_to_keep=1)
    held = [(index, layer.keys.data_ptr(), layer.values.data_ptr()) for index, layer in enumerate(feed.cache.layers)]
    assert written == [each for each in held for _ in range(TOKENS // 5)]


@pytest.mark.parametrize("policy", [Dense(), *POLICIES.values()], ids=["dense", *POLICIES])
def test_no_tensor_is_as_long_as_the_prompt_and_as_wide_as_the_mlp(policy: Policy | Progressive) -> None:
    tokens, hidden = 1024, 64
    model = tiny(intermediate_size=16 * hidden, num_hidden_layers=5, max_position_embeddings=tokens)
    with halting(model, policy, piece_tokens=32), Largest() as largest:
        Feed(model)(prompts(tokens)[0], logits_to_keep=1)
    assert largest.elements <= 2 * tokens * hidden


# When it runs in pieces


def piece_of(model: Any, tokens: int, **options: Any) -> int:
    """The largest number of tokens that an MLP ran on."""
    seen: list[int] = []
    hook = model.model.layers[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with halting(model, Dense(), **options):
        model(prompts(tokens)[0], logits_to_keep=1)
    hook.remove()
    return max(seen)


@torch.no_grad()
def test_a_long_prompt_runs_in_pieces_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LONGEST_WHOLE", 32)
    monkeypatch.setattr(pieces, "PIECE", 16)
    model = tiny()
    assert piece_of(model, 32) == 32
    assert piece_of(model, 33) == 16
    assert piece_of(model, 33, piece_tokens=20) == 20
    assert piece_of(model, 33, piece_tokens=pieces.WHOLE) == 33


@torch.no_grad()
def test_applying_takes_the_size_of_a_piece() -> None:
    model, seen = tiny(), []
    model.model.layers[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with applying(model, Dash(start=1), piece_tokens=15):
        model(prompts(TOKENS)[0], logits_to_keep=1)
    assert seen == [15, 15, 10]


@pytest.mark.parametrize("size", [0, -5, 2.0, True, "many"])
def test_a_wrong_size_is_refused(size: Any) -> None:
    model = tiny()
    for block in (halting(model, Dense(), piece_tokens=size), applying(model, Dense(), piece_tokens=size)):
        with pytest.raises(InputError, match="give a number of tokens, 1 or more"), block:
            pass


def with_gradients(model: Any) -> torch.Tensor:
    return model(prompts(TOKENS)[0], logits_to_keep=1).logits


@torch.no_grad()
def with_a_hook_on_attention(model: Any) -> torch.Tensor:
    hook = model.model.layers[2].self_attn.register_forward_hook(lambda *_: None)
    logits = model(prompts(TOKENS)[0], logits_to_keep=1).logits
    hook.remove()
    return logits


@torch.no_grad()
def with_an_image(model: Any) -> torch.Tensor:
    return vision_prompts(model, "gemma3", SEVERAL).feed(Feed(model))


REFUSED = {
    "gradients": (tiny, with_gradients, r"in torch\.no_grad\(\), or leave piece_tokens out"),
    "a hook on attention": (tiny, with_a_hook_on_attention, "remove it"),
    "an image seen both ways": (lambda: tiny_vision("gemma3"), with_an_image, "leave images out"),
}


@pytest.mark.parametrize(("make", "call", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_in_pieces_is_refused_and_runs_whole_by_itself(
    make: Callable[[], Any], call: Callable[[Any], torch.Tensor], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "LONGEST_WHOLE", 16)
    monkeypatch.setattr(pieces, "PIECE", 5)
    expected, model = call(make()), make()
    before = attributes(model)
    with pytest.raises(UnsupportedError, match=advice) as caught, halting(model, Dense(), piece_tokens=5):
        call(model)
    assert "\n" not in str(caught.value)
    model = make() if "hook" in str(caught.value) else model
    with halting(model, Dense()):
        assert torch.equal(call(model), expected)
    assert attributes(model) == before or "hook" in str(caught.value)


def test_an_error_in_a_piece_leaves_the_cache_as_it_was() -> None:
    model, feed = tiny(), None
    with halting(model, Dense(), piece_tokens=5):
        feed = Feed(model)
        feed(*prompts(TOKENS), logits_to_keep=1)
        held = [(layer.keys, layer.values) for layer in feed.cache.layers]
        hook = model.model.layers[3].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            feed(*prompts(12, seed=1), logits_to_keep=1)
        hook.remove()
    for layer, (keys, values) in zip(feed.cache.layers, held, strict=True):
        assert layer.keys is keys
        assert layer.values is values


# Causal to the lower right


@pytest.mark.parametrize("kernel", ["flash", "masks"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (5, 9), (9, 9), (2100, 2345)])
def test_attention_to_the_lower_right(
    queries: int, keys: int, groups: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU torch writes out the mask that it hands to FlashAttention as an argument on a GPU."""
    monkeypatch.setattr(lower_right, "can_use_flash_attention", lambda _: kernel == "flash")
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * groups, queries, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, keys, 8, generator=generator)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    scores = query @ key.repeat_interleave(groups, dim=1).mT * 0.3
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    ours = lower_right.attend_lower_right(query, key, value, 0.3)
    assert near(ours, weights @ value.repeat_interleave(groups, dim=1))


def test_an_attention_that_is_not_caught_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="did not call scaled_dot_product_attention"), lower_right.LowerRight():
        pass
