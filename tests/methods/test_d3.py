"""D3: generated tokens skip layers; held against the stock model whose layers pass a token by and do not show it."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from deltahalt import InputError, PolicyError, UnsupportedError, halting
from deltahalt.engine.cache import HaltedCache
from deltahalt.host.compat import CACHE
from deltahalt.methods.applying import applying
from deltahalt.methods.d3 import D3
from deltahalt.policies import Dense
from helpers.oracle import Feed
from helpers.tiny import LAYERS, VARIANTS, VOCAB, attributes, prompts, tiny

TOLERANCE = 1e-5
METHOD = D3(alpha=0.8, core=2)  # of 6 layers: 4, 3, 3, 2, 2, ...
# Dynamic RoPE gives a key other angles in one long pass than when it is generated, in the stock model as here.
TIMELESS = [name for name in VARIANTS if name != "llama-dynamic-rope"]
CALLS = (1, 1, 1, 1, 3, 1, 1)  # tokens in each call after the prompt; the one of three is a next question


def drawn(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1))


def in_one_pass(
    variant: str, attention: str, ids: torch.Tensor, mask: torch.Tensor, run: list[list[int]]
) -> torch.Tensor:
    """Logits [B, n, V] of the stock model for all columns at once; run: for each, the layers that it runs through."""
    model, windows = tiny(variant, attention), VARIANTS[variant].windows
    key = torch.arange(ids.shape[1])
    query = key[:, None]
    with ExitStack() as undo:
        for index, layer in enumerate(model.model.layers):
            through = torch.tensor([index in layers for layers in run])
            visible = (key <= query) & through
            if windows[index] is not None:
                visible = visible & (key > query - windows[index])
            readable = visible & mask.bool()[:, None] | torch.eye(len(key), dtype=torch.bool)
            allowed = readable[:, None]
            if attention == "eager":
                allowed = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

            def hand(_: nn.Module, args: Any, kwargs: Any, allowed: torch.Tensor = allowed) -> Any:
                return args, kwargs | {"attention_mask": allowed}

            def skip(_: nn.Module, args: Any, output: torch.Tensor, through: torch.Tensor = through) -> torch.Tensor:
                return torch.where(through[:, None], output, args[0])

            undo.callback(layer.register_forward_pre_hook(hand, with_kwargs=True).remove)
            undo.callback(layer.register_forward_hook(skip).remove)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            return model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize("lengths", [(20,), (20, 11)], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", TIMELESS)
def test_a_skipped_layer_is_the_identity_and_its_keys_are_missing(
    variant: str, attention: str, lengths: tuple[int, ...]
) -> None:
    ids, mask = prompts(*lengths)
    more = drawn(len(lengths), sum(CALLS))
    model = tiny(variant, attention)
    with applying(model, METHOD):
        feed = Feed(model)
        ours = [feed(ids, mask), *(feed(tokens) for tokens in more.split(CALLS, dim=1))]
    run = [list(range(LAYERS))] * ids.shape[1]
    number = 0
    for tokens in CALLS:
        number = number + 1 if tokens == 1 else 0
        run += [METHOD.depth(number, LAYERS) if number else list(range(LAYERS))] * tokens
    assert [len(layers) for layers in run[-3:]] == [6, 4, 3]
    whole = torch.cat([mask, torch.ones_like(more)], dim=1)
    theirs = in_one_pass(variant, attention, torch.cat([ids, more], dim=1), whole, run)
    for row, padding in enumerate((mask == 0).sum(dim=1).tolist()):
        gap = torch.cat(ours, dim=1)[row, padding:] - theirs[row, padding:]
        assert float(gap.abs().max()) < TOLERANCE


def test_the_prefill_is_the_full_models_and_every_layer_holds_it() -> None:
    ids, _ = prompts(30)
    model = tiny()
    cache = DynamicCache()
    with applying(model, METHOD) as applied, torch.no_grad():
        logits = model(ids, **{CACHE: cache}).logits
    assert torch.equal(logits, tiny()(ids).logits)
    assert applied.halted.report.lengths == ((30,) * LAYERS,)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [30] * LAYERS


@pytest.mark.parametrize(
    ("alpha", "core", "layers", "runs"),
    [
        (0.9, 0.5, 8, [[0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 5, 6, 7], [0, 1, 2, 6, 7], [0, 1, 2, 6, 7], [0, 1, 6, 7]]),
        (0.5, 5, 8, [[0, 1, 2, 6, 7]] * 5),
        (1.0, 1, 4, [[0, 1, 2, 3]] * 5),
    ],
)
def test_token_i_runs_through_a_decaying_number_of_layers(
    alpha: float, core: float, layers: int, runs: list[list[int]]
) -> None:
    """floor(8 * 0.9^i) for i = 1..5 is 7, 6, 5, 5, 4: the middle is skipped first, the core never."""
    assert [D3(alpha=alpha, core=core).depth(token, layers) for token in range(1, 6)] == runs


@pytest.mark.parametrize("layers", [6, 7, 30])
def test_a_layer_that_is_skipped_once_is_skipped_from_then_on(layers: int) -> None:
    method = D3(alpha=0.93)
    for token in range(1, 40):
        assert set(method.depth(token + 1, layers)) <= set(method.depth(token, layers))


def test_generate_takes_the_same_steps() -> None:
    ids, mask = prompts(20, 13)
    model = tiny()
    with applying(model, METHOD):
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        feed = Feed(model)
        steps = [feed(ids, mask)[:, -1], *(feed(step)[:, 0] for step in out.sequences[:, 20:-1].split(1, dim=1))]
    assert torch.stack(out.logits).sub(torch.stack(steps)).abs().max() < TOLERANCE
    full = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert not torch.equal(full, out.sequences)


def test_beams_are_scored_as_their_tokens_are_one_by_one() -> None:
    ids, _ = prompts(20)
    model = tiny()
    with applying(model, METHOD), torch.no_grad():
        out = model.generate(
            ids, max_new_tokens=6, num_beams=3, length_penalty=0.0, output_scores=True, return_dict_in_generate=True
        )
        feed, total = Feed(model), 0.0
        logits = feed(ids)[0, -1]
        for token in out.sequences[0, 20:]:
            total += float(logits.log_softmax(-1)[token])
            logits = feed(token.view(1, 1))[0, -1]
    assert float(out.sequences_scores[0]) == pytest.approx(total, abs=1e-4)


def test_an_answer_can_be_cropped_only_before_layers_were_skipped() -> None:
    ids, _ = prompts(12)
    model, cache = tiny(), DynamicCache()
    with applying(model, D3(alpha=0.9, core=2)), torch.no_grad():  # floor(6 * 0.9) = 5
        model(ids, **{CACHE: cache})
        assert isinstance(cache, HaltedCache)
        cache.crop(-2)
        model(ids[:, -2:], **{CACHE: cache})
        model(ids[:, :1], **{CACHE: cache})
        with pytest.raises(InputError, match="cannot crop"):
            cache.crop(-1)


def test_a_cache_begun_elsewhere_is_refused() -> None:
    ids, _ = prompts(12)
    model, cache = tiny(), DynamicCache()
    with torch.no_grad():
        model(ids, **{CACHE: cache})
        with applying(model, METHOD), pytest.raises(UnsupportedError, match="created outside"):
            model(ids[:, :1], **{CACHE: cache})


def test_an_answers_cache_goes_on_in_a_dense_block() -> None:
    ids, _ = prompts(12)
    model, cache = tiny(), DynamicCache()
    with applying(model, METHOD), torch.no_grad():
        for tokens in (ids, ids[:, :1], ids[:, 1:2]):
            model(tokens, **{CACHE: cache})
        apart = [layer.keys.shape[-2] for layer in cache.layers]
    assert min(apart) < max(apart)
    with halting(model, Dense()), torch.no_grad():
        later = model(ids[:, 2:5], **{CACHE: cache}).logits
    run = [list(range(LAYERS))] * 12 + [METHOD.depth(1, LAYERS), METHOD.depth(2, LAYERS)] + [list(range(LAYERS))] * 3
    whole = torch.cat([ids, ids[:, :5]], dim=1)
    theirs = in_one_pass("llama", "sdpa", whole, torch.ones_like(whole), run)
    assert later.sub(theirs[:, -3:]).abs().max() < TOLERANCE


def test_the_model_is_as_before() -> None:
    model = tiny()
    before = attributes(model)
    with applying(model, METHOD):
        model.generate(prompts(12)[0], max_new_tokens=4)
    assert attributes(model) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"alpha": "fast"}, "must be a number"),
        ({"core": 0}, "core is 0"),
        ({"core": 1.5}, "core is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        D3(**options)


def test_a_core_larger_than_the_model_is_refused() -> None:
    with pytest.raises(PolicyError, match="core is 7, but the model has 6"):
        D3(core=7).depth(1, 6)
