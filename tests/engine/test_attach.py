"""`halting` leaves a model as it found it, however the block ends, and keeps one model's run apart from another's."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, InputError, KeyNorm, Policy, Progressive, Report, Uniform, UnsupportedError, halting
from deltahalt.engine.cache import HaltedCache
from helpers.frozen import frozen, plain
from helpers.oracle import Feed
from helpers.tiny import attributes, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
LATE = KeyNorm(start=3, pruning_ratio=0.4, keep_first=4, keep_last=1)
IDS, MASK = prompts(40, 29)


def run(model: Any) -> torch.Tensor:
    return Feed(model)(IDS, MASK, logits_to_keep=1)


def halted(model: Any, policy: Policy | Progressive = DASH) -> tuple[torch.Tensor, Report]:
    with halting(model, policy) as attached:
        return run(model), attached.report


# Leaving the block


def test_after_the_block_the_model_is_as_before() -> None:
    model = tiny()
    before, expected = attributes(model), run(model)
    halted(model)
    assert attributes(model) == before
    assert torch.equal(run(model), expected)


def test_after_an_exception_the_model_is_as_before() -> None:
    model = tiny()
    before, expected = attributes(model), run(model)

    def halt_and_fail() -> None:
        with halting(model, DASH):
            run(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halt_and_fail()
    assert attributes(model) == before
    assert torch.equal(run(model), expected)


def test_after_an_exception_inside_a_layer_the_model_is_as_before() -> None:
    model = tiny()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    hook = model.model.layers[3].register_forward_pre_hook(fail)
    before = attributes(model)
    with pytest.raises(ZeroDivisionError), halting(model, DASH):
        run(model)
    assert attributes(model) == before
    hook.remove()
    assert torch.equal(halted(model)[0], halted(tiny())[0])


def test_what_stood_in_forward_before_stands_there_again() -> None:
    model, calls = tiny(), []
    usual, generate = model.model.forward, model.generate
    model.model.forward = lambda *args, **kwargs: calls.append("forward") or usual(*args, **kwargs)

    def own_generate(*args: Any, **kwargs: Any) -> Any:
        return generate(*args, **kwargs)

    own_generate.__self__ = model  # as a bound method has it
    model.generate = own_generate
    before = attributes(model)
    halted(model)
    assert attributes(model) == before
    assert not calls  # halting stood in for it
    run(model)
    assert calls == ["forward"]


def test_hooks_of_others_survive() -> None:
    model, calls = tiny(), []
    model.register_forward_pre_hook(lambda *_: calls.append("model"))
    model.model.register_forward_hook(lambda *_: calls.append("decoder"))
    halted(model)
    run(model)
    assert calls == ["model", "decoder"] * 2


def test_a_hook_registered_in_the_block_survives_it() -> None:
    model, calls = tiny(), []
    with halting(model, DASH):
        model.register_forward_pre_hook(lambda *_: calls.append("model"))
    run(model)
    assert calls == ["model"]


# The report


def test_there_is_no_report_before_the_first_prefill() -> None:
    with halting(tiny(), DASH) as attached, pytest.raises(InputError, match="run the model inside"):
        _ = attached.report


def test_the_report_outlives_the_block_and_decoding() -> None:
    model = tiny()
    with halting(model, DASH) as attached:
        feed = Feed(model)
        feed(IDS, MASK, logits_to_keep=1)
        report = attached.report
        feed(IDS[:, :1])
    assert attached.report is report
    assert report.prompts == (40, 29)


def test_the_report_is_of_the_latest_prefill() -> None:
    model = tiny()
    with halting(model, DASH) as attached:
        run(model)
        Feed(model)(IDS[:, 20:], logits_to_keep=1)
    assert attached.report.prompts == (20, 20)


@pytest.mark.parametrize("variant", ["llama", "gemma3", "mistral-sliding", "qwen2-sliding"])
def test_the_report_counts_what_the_cache_holds(variant: str) -> None:
    model = tiny(variant)
    with halting(model, DASH) as attached:
        feed = Feed(model)
        feed(IDS, MASK, logits_to_keep=1)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in feed.cache.layers)
    stock = Feed(model)
    stock(IDS, MASK)
    full = sum(layer.keys.nbytes + layer.values.nbytes for layer in stock.cache.layers)
    assert (attached.report.cache_bytes, attached.report.full_cache_bytes) == (stored, full)


@pytest.mark.parametrize(
    ("boundary", "kept", "ffn", "kv_only"),
    [
        ("block", plain, (40, 40, 19, 19, 19, 1), 0),
        ("attention", plain, (40, 19, 19, 19, 19, 1), 0),
        ("block", frozen, (40, 40, 19, 19, 19, 1), 21),
    ],
)
def test_the_report_tells_what_each_layer_computed(boundary: Any, kept: Any, ffn: Any, kv_only: int) -> None:
    model = tiny()
    with halting(model, kept(replace(DASH, boundary=boundary))) as attached:
        run(model)
    loads = attached.report.loads[0]
    assert [load.attended for load in loads] == [40, 40, 19, 19, 19, 1]
    assert tuple(load.ffn_tokens for load in loads) == ffn
    assert [load.kv_only_tokens for load in loads] == [0, 0, kv_only, kv_only, kv_only, kv_only + 18]


def test_the_report_of_a_whole_prompt() -> None:
    _, report = halted(tiny(), Dash(start=1))  # protects more tokens than there are
    assert report.stages == ()
    assert [kept.tolist() for kept in report.kept] == [list(range(40)), list(range(29))]
    assert report.speedup_bound == 1


def test_seconds_are_measured_where_they_are_asked_for() -> None:
    model = tiny()
    with halting(model, DASH, timed=True) as attached:
        run(model)
    assert attached.report.seconds is not None
    assert attached.report.seconds > 0
    assert halted(model)[1].seconds is None


# One model after another, and beside another


def test_the_same_model_with_another_policy() -> None:
    model = tiny()
    first, _ = halted(model)
    second, report = halted(model, LATE)
    assert [layer for layer, _ in report.stages] == [3]
    assert torch.equal(second, halted(tiny(), LATE)[0])
    assert torch.equal(halted(model)[0], first)


def test_two_models_at_once_in_one_thread() -> None:
    one, other = tiny(), tiny("gemma3")
    with halting(one, DASH) as attached_one, halting(other, LATE) as attached_other:
        logits = run(one), run(other)
    assert torch.equal(logits[0], halted(one)[0])
    assert torch.equal(logits[1], halted(other, LATE)[0])
    assert attached_one.report.stages[0][0] != attached_other.report.stages[0][0]


def test_two_models_at_once_in_two_threads() -> None:
    models = {"llama": DASH, "gemma3": LATE, "qwen2-sliding": Uniform(start=2, keep_first=0, keep_last=1)}
    alone = {name: halted(tiny(name), policy)[0] for name, policy in models.items()}

    def many(name: str) -> list[torch.Tensor]:
        model = tiny(name)
        with halting(model, models[name]):
            return [run(model) for _ in range(20)]

    with ThreadPoolExecutor(len(models)) as pool:
        together = dict(zip(models, pool.map(many, models), strict=True))
    assert all(torch.equal(logits, alone[name]) for name in models for logits in together[name])


# Ways in


def test_a_bare_decoder() -> None:
    """Without a head nothing asks for logits: halted tokens have NaN for a hidden state."""
    model = tiny()
    expected, report = halted(model)
    with halting(model.model, DASH), torch.no_grad():
        hidden = model.model(IDS, MASK, (MASK.cumsum(dim=1) - 1).clamp(min=0)).last_hidden_state
    assert torch.allclose(model.lm_head(hidden[:, -1:]), expected, atol=1e-5)
    for row, kept in enumerate(report.kept):
        assert (~hidden[row].isnan().any(dim=-1)).sum() == len(kept)


def test_arguments_by_place() -> None:
    model = tiny()
    positions = (MASK.cumsum(dim=1) - 1).clamp(min=0)
    cache: Any = DynamicCache(config=model.config)
    with halting(model, DASH), torch.no_grad():
        logits = model(IDS, MASK, positions, cache, logits_to_keep=1).logits
    assert torch.equal(logits, halted(model)[0])
    assert isinstance(cache, HaltedCache)


def test_embeddings_by_place() -> None:
    model = tiny()
    with halting(model, Uniform(start=1)), torch.no_grad():
        expected = model.model(IDS, MASK).last_hidden_state
        embeds = model.get_input_embeddings()(IDS)
        assert torch.equal(model.model(None, MASK, None, None, embeds).last_hidden_state, expected)


def test_a_tuple_in_place_of_an_output() -> None:
    model = tiny()
    with halting(model, DASH), torch.no_grad():
        expected = model(IDS, MASK, logits_to_keep=1).logits
        logits, cache = model(IDS, MASK, logits_to_keep=1, return_dict=False)
    assert torch.equal(logits, expected)
    assert isinstance(cache, HaltedCache)


def test_generate_from_embeddings() -> None:
    model = tiny()
    options = {"attention_mask": MASK, "max_new_tokens": 4, "do_sample": False}
    with halting(model, DASH):
        expected = model.generate(IDS, **options)[:, 40:]
        embeds = model.get_input_embeddings()(IDS)
        assert torch.equal(model.generate(inputs_embeds=embeds, **options), expected)


def test_embeddings_in_place_of_tokens() -> None:
    model = tiny("gemma3")  # scales them
    with halting(model, DASH), torch.no_grad():
        embeds = model.get_input_embeddings()(IDS)
        positions = (MASK.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(inputs_embeds=embeds, attention_mask=MASK, position_ids=positions, logits_to_keep=1).logits
    assert torch.equal(logits, halted(model)[0])


def test_a_generation_config_passed_to_generate() -> None:
    """It is looked at, and handed on."""
    model = tiny()
    config = type(model.generation_config)(max_new_tokens=3, do_sample=False)
    with halting(model, DASH):
        assert model.generate(IDS[:1], generation_config=config).shape == (1, 43)


def test_a_generation_config_of_the_model_that_halting_cannot_serve() -> None:
    model = tiny()
    model.generation_config.prefill_chunk_size = 8
    with halting(model, DASH), pytest.raises(UnsupportedError, match="prefill_chunk_size=8"):
        model.generate(IDS[:1])


def test_the_package_loads_none_of_the_host_s_models_before_one_is_asked_for() -> None:
    code = "import sys, deltahalt; print(*(name for name in sys.modules if '.modeling_' in name and 'models' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
