"""What a prefill in pieces allocates, and when it runs so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import (
    Dash,
    Dense,
    InputError,
    Policy,
    Progressive,
    UnsupportedError,
    applying,
    halting,
)
from deltahalt.engine import pieces
from deltahalt.engine.layer_kv import LayerKV
from helpers.memory import Largest
from helpers.oracle import Feed
from helpers.pieces import LENGTHS, POLICIES, SERVING, TOKENS
from helpers.tiny import WINDOW, attributes, prompts, tiny
from helpers.tiny_vision import SEVERAL, tiny_vision, vision_prompts

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
    assert all((mask is None or queries == 1) and queries <= 5 for mask, queries, _ in seen)  # 1: in the last layer
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
