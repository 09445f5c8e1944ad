"""Vision-language models where nothing is halted: the host, bit for bit."""

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import (
    Dash,
    Dense,
    halting,
)
from deltahalt.host.compat import merged_mrope
from deltahalt.host.families import family_of
from helpers.oracle import Feed
from helpers.tiny_vision import (
    ALONE,
    BATCH,
    MROPE,
    ROWS,
    VISION,
    Row,
    tiny_vision,
    vision_prompts,
)
from helpers.vision_ways import VISUAL, generated, logits_of, same


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VISION)
def test_forward_is_the_host_s_bit_for_bit(name: str, attention: str, rows: tuple[Row, ...]) -> None:
    model = tiny_vision(name, attention)
    prompts = vision_prompts(model, name, rows)
    expected = logits_of(Feed(model), prompts)
    with halting(model, Dense()):
        assert same(logits_of(Feed(model), prompts), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VISION)
def test_generate_is_the_host_s_bit_for_bit(name: str, attention: str) -> None:
    model = tiny_vision(name, attention)
    prompts = vision_prompts(model, name, BATCH)
    expected = generated(model, prompts)
    with halting(model, Dash(**VISUAL | {"pruning_ratio": 0})):
        ours = generated(model, prompts)
    assert torch.equal(ours.sequences, expected.sequences)
    assert same(ours.logits, expected.logits)


@pytest.mark.parametrize("name", VISION)
def test_a_prompt_of_text_is_the_host_s_bit_for_bit(name: str) -> None:
    """A policy for visual tokens has nothing to halt in it."""
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ((20,), (13,)))
    expected = generated(model, prompts)
    with halting(model, Dash(**VISUAL)) as halted:
        assert same(generated(model, prompts).logits, expected.logits)
    assert halted.report.stages == ()


@pytest.mark.parametrize("name", VISION)
def test_embeddings_in_place_of_tokens(name: str) -> None:
    """The host finds placeholders by their embedding."""
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    given = prompts.inputs | {"attention_mask": prompts.mask, "logits_to_keep": 1}
    if prompts.positions is not None:
        given["position_ids"] = prompts.positions
    with torch.no_grad(), halting(model, Dash(**VISUAL)) as halted:
        expected = model(input_ids=prompts.ids, **given).logits
        kept = halted.report.kept
        embeds = model.get_input_embeddings()(prompts.ids)
        logits = model(inputs_embeds=embeds, **given).logits
    assert torch.equal(logits, expected)
    assert torch.equal(halted.report.kept[0], kept[0])


@pytest.mark.parametrize("name", [*MROPE, "gemma3"])
def test_queries_keys_and_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that the host's layer hands to its attention function, and its cache."""
    model = tiny_vision(name)
    decoder, prompts = model.get_decoder(), vision_prompts(model, name, BATCH)
    family, attend = family_of(decoder.config), ALL_ATTENTION_FUNCTIONS["sdpa"]
    entering: list[tuple[torch.Tensor, Any]] = []
    attended: dict[int, tuple[torch.Tensor, ...]] = {}

    def record(module: Any, *states: Any, **kwargs: Any) -> Any:
        attended[id(module)] = states[:3]
        return attend(module, *states, **kwargs)

    for layer in decoder.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: entering.append((args[0], kwargs["position_embeddings"])), with_kwargs=True
        )
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
    prompts.feed(Feed(model))
    with torch.no_grad():
        for layer, (hidden, rotary) in zip(decoder.layers, entering, strict=True):
            merged = merged_mrope(rotary, decoder.config)
            ours = family.queries(layer, hidden, merged), *family.keys_values(layer, hidden, merged)
            assert same(list(ours), list(attended[id(layer.self_attn)]))
