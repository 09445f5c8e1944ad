"""Where nothing is halted, the engine equals the stock model bit for bit, and so does every layer that it opens."""

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import Dash, Dense, Policy, Progressive, WindowAttention, halting
from deltahalt.host.compat import CACHE
from deltahalt.host.families import family_of
from helpers.oracle import Feed
from helpers.tiny import VARIANTS, VOCAB, prompts, tiny

LENGTHS = [(40,), (40, 29)]
NOTHING_HALTED = {
    "dense": Dense(),
    "ratio 0": Dash(start=1, pruning_ratio=0, keep_first=0, keep_last=1),
    "short prompt": Dash(start=1, keep_first=64, keep_last=32),
    "two stages": Progressive([Dash(start=1, pruning_ratio=0), WindowAttention(start=3, pruning_ratio=0)]),
}


def logits_of(model: Any, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """Logits of a prefill, of three single tokens, and of four tokens in one call."""
    feed = Feed(model)
    more = torch.randint(1, VOCAB, (len(lengths), 7), generator=torch.Generator().manual_seed(1))
    prefill = feed(*prompts(*lengths), logits_to_keep=1)
    return [prefill, *(feed(more[:, step : step + 1]) for step in range(3)), feed(more[:, 3:])]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(variant: str, attention: str, lengths: tuple[int, ...]) -> None:
    expected = logits_of(tiny(variant, attention), lengths)
    model = tiny(variant, attention)
    with halting(model, Dense()):
        logits = logits_of(model, lengths)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))


@pytest.mark.parametrize("policy", NOTHING_HALTED.values(), ids=NOTHING_HALTED)
def test_every_way_to_halt_nothing(policy: Policy | Progressive) -> None:
    model = tiny()
    expected = logits_of(model, (40, 29))
    with halting(model, policy):
        logits = logits_of(model, (40, 29))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_generate(variant: str, attention: str, lengths: tuple[int, ...]) -> None:
    ids, mask = prompts(*lengths)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    expected = tiny(variant, attention).generate(ids, **options)
    model = tiny(variant, attention)
    with halting(model, Dash(start=1, pruning_ratio=0)):
        ours = model.generate(ids, **options)
    assert torch.equal(ours.sequences, expected.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", ["llama", "qwen2-sliding", "gemma3"])
def test_half_precision(variant: str, dtype: torch.dtype) -> None:
    model = tiny(variant, "sdpa", dtype)
    expected = logits_of(model, (40, 29))
    with halting(model, Dense()):
        logits = logits_of(model, (40, 29))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"logits_to_keep": 5}, {"attention_mask": None}, {"attention_mask": torch.ones(1, 40)}],
    ids=str,
)
def test_ways_to_call(options: dict[str, Any]) -> None:
    model = tiny()
    ids, _ = prompts(40)
    with torch.no_grad():
        expected = model(ids, **options).logits
        with halting(model, Dense()):
            assert torch.equal(model(ids, **options).logits, expected)


def test_a_continuation_that_names_no_positions() -> None:
    ids, _ = prompts(40)

    def second_turn(model: Any) -> torch.Tensor:
        with torch.no_grad():
            cache = getattr(model(ids[:, :20]), CACHE)
            return model(ids[:, 20:], **{CACHE: cache}).logits

    model = tiny()
    expected = second_turn(model)
    with halting(model, Dense()):
        assert torch.equal(second_turn(model), expected)


def test_inputs_embeds() -> None:
    model = tiny("gemma3")  # scales its embeddings
    ids, _ = prompts(40)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        expected = model(inputs_embeds=embeds).logits
        with halting(model, Dense()):
            assert torch.equal(model(inputs_embeds=embeds).logits, expected)


def test_gradients() -> None:
    model = tiny()
    ids, _ = prompts(12)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(ids, use_cache=False).logits.sum().backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad

    expected = gradient()
    with halting(model, Dense()):
        assert torch.equal(gradient(), expected)


class Spy:
    """Records what each layer of a stock prefill takes, gives, and hands to its attention function."""

    def __init__(self, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = tiny(variant)
        self.family = family_of(self.model.config)
        self.calls: list[dict[str, Any]] = []
        self.outputs: list[torch.Tensor] = []
        self.attended: list[tuple[torch.Tensor, ...]] = []
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def record(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            self.attended.append((query, key, value))
            return attend(module, query, key, value, *args, **kwargs)

        for layer in self.model.model.layers:
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: self.calls.append({"hidden_states": args[0], **kwargs}), with_kwargs=True
            )
            layer.register_forward_hook(lambda _, args, output: self.outputs.append(output))
        with monkeypatch.context() as patch:
            patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
            with torch.no_grad():
                self.model(*prompts(40, 29), use_cache=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_opened_layer(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and FFN, called by themselves, make up the host's layer."""
    spy = Spy(variant, monkeypatch)
    with torch.no_grad():
        for layer, call, output in zip(spy.model.model.layers, spy.calls, spy.outputs, strict=True):
            hidden = call.pop("hidden_states")
            update = spy.family.attention(layer, hidden, **call)
            between = spy.family.add_attention(layer, hidden, update)
            assert torch.equal(spy.family.feed_forward(layer, between), output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_keys_and_values(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that the host's layer hands to its attention function, and its cache."""
    spy = Spy(variant, monkeypatch)
    with torch.no_grad():
        for layer, call, attended in zip(spy.model.model.layers, spy.calls, spy.attended, strict=True):
            hidden, rotary = call["hidden_states"], call["position_embeddings"]
            held = spy.family.keys_values(layer, hidden, rotary)
            assert torch.equal(spy.family.keys(layer, hidden, rotary), held[0])
            ours = (spy.family.queries(layer, hidden, rotary), *held)
            assert all(torch.equal(a, b) for a, b in zip(ours, attended, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_windows(variant: str) -> None:
    assert family_of(tiny(variant).config).windows(tiny(variant).config) == VARIANTS[variant].windows
