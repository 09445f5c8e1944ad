"""What halting cannot serve is refused in one line that says what to do, and leaves model and cache as they were."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    GenerationConfig,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from deltahalt import (
    Dash,
    InputError,
    KeyNorm,
    LastTokenAttention,
    Policy,
    PolicyError,
    Progressive,
    SingleInputKV,
    Uniform,
    UnsupportedError,
    WindowAttention,
    halting,
)
from deltahalt.host.compat import CACHE
from helpers.frozen import frozen
from helpers.oracle import Feed
from helpers.tiny import VOCAB, attributes, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
IDS, MASK = prompts(40, 29)
ONE = {"input_ids": IDS, "attention_mask": MASK, "logits_to_keep": 1}


class OtherCache(DynamicCache):
    """Stands for the quantized caches, whose packages may be missing, and for whatever comes next."""


@dataclass(frozen=True)
class Refused:
    """A call of a model that is halting. advice: what its message has to say."""

    call: Callable[[Any], Any]
    error: type[Exception]
    advice: str
    variant: str = "llama"
    attention: str = "sdpa"
    policy: Policy | Progressive = DASH
    options: dict[str, Any] = field(default_factory=dict)


def unsupported(advice: str, call: Callable[[Any], Any], **options: Any) -> Refused:
    return Refused(call, UnsupportedError, advice, **options)


def wrong_input(advice: str, call: Callable[[Any], Any]) -> Refused:
    return Refused(call, InputError, advice)


def generating(advice: str, **options: Any) -> Refused:
    return unsupported(advice, lambda model: model.generate(IDS[:1], max_new_tokens=2, **options))


def masked(advice: str, *rows: str) -> Refused:
    mask = torch.tensor([[int(column) for column in row] for row in rows])
    return wrong_input(advice, lambda model: model(IDS[:, : mask.shape[1]], mask, logits_to_keep=1))


def with_attention(name: str) -> Callable[[Any], Any]:
    def call(model: Any) -> Any:
        usual, model.config._attn_implementation = model.config._attn_implementation, name
        try:
            return model(**ONE)
        finally:
            model.config._attn_implementation = usual

    return call


def with_config(name: str) -> Callable[[Any], Any]:
    def call(model: Any) -> Any:
        setattr(model.config, name, True)
        try:
            return model(**ONE)
        finally:
            setattr(model.config, name, False)

    return call


def with_nan(model: Any) -> Any:
    embeds = model.get_input_embeddings()(IDS).clone()
    embeds[1, 30] = torch.nan
    return model(inputs_embeds=embeds, attention_mask=MASK, logits_to_keep=1)


CALLS = {
    # caches
    "static cache": unsupported(
        "pass a DynamicCache, or none",
        lambda model: model(**ONE, **{CACHE: StaticCache(config=model.config, max_cache_len=64)}),
    ),
    "other cache": unsupported("pass a DynamicCache, or none", lambda model: model(**ONE, **{CACHE: OtherCache()})),
    "offloaded cache": unsupported(
        "pass a plain DynamicCache", lambda model: model(**ONE, **{CACHE: DynamicCache(offloading=True)})
    ),
    "frozen without a cache": unsupported(
        "needs a cache", lambda model: model(**ONE, use_cache=False), policy=frozen(DASH)
    ),
    # generate
    "generate: static": generating("leave cache_implementation unset", cache_implementation="static"),
    "generate: offloaded": generating(
        "plain DynamicCache|leave cache_implementation unset", cache_implementation="offloaded"
    ),
    "generate: quantized": generating("leave cache_implementation unset", cache_implementation="quantized"),
    "generate: paged": generating("leave cache_implementation unset", cache_implementation="paged"),
    "generate: chunks": generating("leave it unset", prefill_chunk_size=8),
    "generate: chunks, by config": generating(
        "leave it unset", generation_config=GenerationConfig(prefill_chunk_size=8)
    ),
    "generate: assistant": generating("leave it out", assistant_model=tiny()),
    "generate: early exit": generating("leave it unset", assistant_early_exit=2),
    "generate: lookup": generating("leave it unset", prompt_lookup_num_tokens=2),
    "generate: no cache": generating("leave use_cache on", use_cache=False),
    "generate: no cache, by config": generating(
        "leave use_cache on", generation_config=GenerationConfig(use_cache=False)
    ),
    "generate: hidden states": generating("Leave it off", output_hidden_states=True, return_dict_in_generate=True),
    "generate: attentions": generating("Leave it off", output_attentions=True, return_dict_in_generate=True),
    # outputs
    "hidden states": unsupported("Leave it off", lambda model: model(**ONE, output_hidden_states=True)),
    "attentions": unsupported("Leave it off", lambda model: model(**ONE, output_attentions=True)),
    "hidden states, by config": unsupported("Leave it off", with_config("output_hidden_states")),
    "attentions, by config": unsupported("Leave it off", with_config("output_attentions"), attention="eager"),
    "labels": unsupported("labels are not supported", lambda model: model(**ONE, labels=IDS)),
    "all logits": unsupported("pass logits_to_keep=1", lambda model: model(IDS, MASK)),
    "labels by place": unsupported("labels are not supported", lambda model: model(IDS, MASK, None, None, None, IDS)),
    "too many logits": unsupported(r"logits_to_keep=1 \(up to 3\)", lambda model: model(IDS, MASK, logits_to_keep=4)),
    "logits by index": unsupported(
        "pass logits_to_keep=1", lambda model: model(IDS, MASK, logits_to_keep=torch.tensor([0, 39]))
    ),
    # masks and positions
    "right padding": masked("row 1 .* pad on the left", "11111", "11100"),
    "hole in the mask": masked("only padding on the left", "11111", "01011"),
    "nothing but padding": masked("row 0 .* at least one token", "00000", "11111"),
    "mask too short": wrong_input(r"attention_mask is \[2, 39\]", lambda model: model(IDS, MASK[:, 1:])),
    "4D mask": unsupported(
        r"give attention_mask as \[batch, tokens\]", lambda model: model(IDS, torch.ones(2, 1, 40, 40))
    ),
    "mask by kind of layer": unsupported(
        r"give attention_mask as \[batch, tokens\]", lambda model: model(IDS, {"full_attention": MASK})
    ),
    "packed sequences": unsupported(
        "pass one sequence a row",
        lambda model: model(
            IDS[:1],
            position_ids=torch.cat([torch.arange(15), torch.arange(25)])[None],
            use_cache=False,
            logits_to_keep=1,
        ),
    ),
    "packed sequences, by length": unsupported(
        "cu_seq_lens_q is not supported",
        lambda model: model(**ONE, cu_seq_lens_q=torch.tensor([0, 15, 40])),
    ),
    # prompts
    "empty prompt": wrong_input("give at least one token", lambda model: model(IDS[:, :0])),
    "no prompt": wrong_input("give either input_ids or inputs_embeds", lambda model: model(attention_mask=MASK)),
    "two prompts": wrong_input(
        "give either input_ids or inputs_embeds",
        lambda model: model(IDS, MASK, inputs_embeds=torch.zeros(2, 40, 64)),
    ),
    "NaN": Refused(with_nan, PolicyError, "check the input"),
    # attention
    "flex attention": unsupported("use one of sdpa, eager", with_attention("flex_attention")),
    "unknown attention": unsupported("use one of sdpa, eager", with_attention("somebody_elses")),
    "FlashAttention behind a window": unsupported(
        'load the model with attn_implementation="sdpa"', with_attention("flash_attention_2"), variant="gemma3"
    ),
    "FlashAttention, frozen": unsupported("sdpa or eager", with_attention("flash_attention_2"), policy=frozen(DASH)),
    "attention policy at a window": unsupported(
        "choose a start layer with full attention",
        lambda model: model(**ONE),
        variant="mistral-sliding",
        policy=WindowAttention(start=1, window=3, keep_last=3, keep_first=2),
    ),
    "last-token policy at a window": unsupported(
        "choose a start layer with full attention",
        lambda model: model(**ONE),
        variant="gemma3",
        policy=LastTokenAttention(start=3, keep_last=3, keep_first=2),
    ),
}


def plain(model: Any) -> torch.Tensor:
    return Feed(model)(IDS, MASK)


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_a_call_is_refused_in_one_line(case: Refused) -> None:
    model = tiny(case.variant, case.attention)
    with halting(model, case.policy, **case.options), pytest.raises(case.error, match=case.advice) as caught:
        case.call(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_a_refused_call_leaves_the_model_as_it_was(case: Refused) -> None:
    model = tiny(case.variant, case.attention)
    before, expected = attributes(model), plain(model)
    with halting(model, Uniform(start=1, keep_first=2, keep_last=3)):
        halted = Feed(model)(IDS, MASK, logits_to_keep=1)
    with halting(model, case.policy, **case.options), pytest.raises(case.error):
        case.call(model)
    with halting(model, Uniform(start=1, keep_first=2, keep_last=3)):
        assert torch.equal(Feed(model)(IDS, MASK, logits_to_keep=1), halted)
    assert attributes(model) == before
    assert torch.equal(plain(model), expected)


@pytest.mark.parametrize(
    "name", ["NaN", "FlashAttention behind a window", "attention policy at a window", "all logits", "right padding"]
)
def test_a_refused_prefill_leaves_the_callers_cache_empty(name: str) -> None:
    case = CALLS[name]
    model = tiny(case.variant, case.attention)
    cache = DynamicCache(config=model.config)
    inner = model.model

    def with_cache(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {CACHE: cache}

    with halting(model, case.policy, **case.options):
        hook = inner.register_forward_pre_hook(with_cache, with_kwargs=True)
        with pytest.raises(case.error):
            case.call(model)
        hook.remove()
    assert type(cache) is DynamicCache
    assert [cache.get_seq_length(layer) for layer in range(6)] == [0] * 6


# Models and policies


def starcoder() -> Any:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 32}
    return Starcoder2ForCausalLM(Starcoder2Config(**sizes, num_attention_heads=2, num_key_value_heads=2))


def bert() -> Any:
    return BertModel(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))


def t5() -> Any:
    return T5ForConditionalGeneration(T5Config(d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2))


def compiled() -> Any:
    model = tiny()
    model.compile(backend="eager")
    return model


MODELS: dict[str, tuple[Callable[[], Any], Policy | Progressive, dict[str, Any], type[Exception], str]] = {
    "unknown family": (starcoder, DASH, {}, UnsupportedError, "known: gemma3_text, .*qwen2_vl_text"),
    "encoder": (bert, DASH, {}, UnsupportedError, "BertModel has no decoder .* use a causal language model"),
    "encoder and decoder": (t5, DASH, {}, UnsupportedError, "use a causal language model"),
    "any module": (lambda: nn.Linear(2, 2), DASH, {}, UnsupportedError, "use a causal language model"),
    "compiled as a whole": (compiled, DASH, {}, UnsupportedError, "compile each layer"),
    "wrapped by torch.compile": (
        lambda: torch.compile(tiny(), backend="eager"),
        DASH,
        {},
        UnsupportedError,
        "compile each layer",
    ),
    "bidirectional": (
        lambda: tiny("gemma3", use_bidirectional_attention=True),
        DASH,
        {},
        UnsupportedError,
        "give a causal decoder, which halting needs",
    ),
    "frozen behind a window": (lambda: tiny("gemma3"), frozen(DASH), {}, UnsupportedError, "choose another policy"),
    "exit behind a window": (
        lambda: tiny("gemma3"),
        SingleInputKV(start=3),
        {},
        UnsupportedError,
        "single-input-kv keeps K/V of halted tokens",
    ),
    "start at the last layer": (tiny, Dash(start=5), {}, PolicyError, "start at 4 at most"),
    "start beyond the layers": (tiny, Dash(start=17), {}, PolicyError, "start at 4 at most"),
    "stages in disorder": (
        tiny,
        Progressive([Dash(start=3), KeyNorm(start=1)]),
        {},
        PolicyError,
        "put stages in ascending order",
    ),
    "visual tokens": (tiny, Dash(scope="visual"), {}, UnsupportedError, 'use scope="all"'),
}


@pytest.mark.parametrize(("make", "policy", "options", "error", "advice"), MODELS.values(), ids=MODELS)
def test_a_model_or_policy_is_refused_and_left_as_it_was(
    make: Callable[[], Any], policy: Policy, options: dict[str, Any], error: type[Exception], advice: str
) -> None:
    model = make()
    before = attributes(model)
    with pytest.raises(error, match=advice) as caught, halting(model, policy, **options):
        pass
    assert "\n" not in str(caught.value)
    assert attributes(model) == before


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.model], ids=["model", "decoder"])
def test_halting_twice_is_refused_and_the_first_goes_on(part: Callable[[Any], Any]) -> None:
    model = tiny()
    with halting(model, DASH) as halted:
        expected = Feed(model)(IDS, MASK, logits_to_keep=1)
        with pytest.raises(UnsupportedError, match="leave the other"), halting(part(model), KeyNorm(start=2)):
            pass
        assert torch.equal(Feed(model)(IDS, MASK, logits_to_keep=1), expected)
    assert [layer for layer, _ in halted.report.stages] == [1]
