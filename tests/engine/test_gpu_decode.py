"""CUDA graphs of generated tokens: the same tokens as layer by layer, at every moment in the life of a cache."""

import gc
import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, Dense, Policy, Progressive, SingleInputKV, WindowAttention, halting
from deltahalt.engine.recorded import decoding
from deltahalt.engine.recorded.step import DecodeStep
from deltahalt.host.compat import CACHE
from helpers.recording import conversation, decoded
from helpers.tiny import FULL_VARIANTS, prompts, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = 1e-4
DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
POLICIES: dict[str, Policy | Progressive] = {
    "nothing halted": Dense(),
    "two stages": Progressive([DASH, WindowAttention(start=3, pruning_ratio=0.8, keep_first=2, keep_last=8, window=8)]),
    "an exit": SingleInputKV(start=3, keep_last=4),
}


def generated(model: Any, policy: Policy | Progressive, *lengths: int, graphs: bool, **options: Any) -> Any:
    ids, mask = (part.to(model.device) for part in prompts(*lengths))
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True} | options
    cache = DynamicCache(config=model.config)
    with halting(model, policy, decode_graphs=graphs):
        return model.generate(ids, attention_mask=mask, **{CACHE: cache}, return_dict_in_generate=True, **options)


def same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    assert (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max() < TOLERANCE
    for one, other in zip(getattr(ours, CACHE).layers, getattr(theirs, CACHE).layers, strict=True):
        assert torch.allclose(one.keys, other.keys, atol=TOLERANCE)
        assert torch.allclose(one.values, other.values, atol=TOLERANCE)


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[DecodeStep]:
    """The step of each token that ran as a graph."""
    ran: list[DecodeStep] = []
    show = DecodeStep.show
    monkeypatch.setattr(DecodeStep, "show", lambda step, cache: (ran.append(step), show(step, cache)))
    return ran


@pytest.mark.parametrize("lengths", [(150,), (150, 130)], ids=str)
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_every_family(variant: str, lengths: tuple[int, ...], repeated: list[DecodeStep]) -> None:
    theirs = generated(tiny(variant).cuda(), DASH, *lengths, graphs=False)
    assert repeated == []
    ours = generated(
        tiny(variant).cuda(), DASH, *lengths, graphs=True
    )  # a model of its own: some RoPE remembers lengths
    same(ours, theirs)
    assert len(repeated) == 10


@pytest.mark.parametrize("lengths", [(150,), (150, 130)], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_kind_of_policy(policy: str, lengths: tuple[int, ...]) -> None:
    model = tiny("qwen2").cuda()
    theirs = generated(model, POLICIES[policy], *lengths, graphs=False)
    same(generated(model, POLICIES[policy], *lengths, graphs=True), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_to_float32_as_without_graphs(dtype: torch.dtype) -> None:
    def logits(dtype: torch.dtype, *, graphs: bool) -> torch.Tensor:
        return decoded(tiny("qwen2", dtype=dtype).cuda(), Dense(), 150, 130, graphs=graphs)

    exact = logits(torch.float32, graphs=False)
    errors = [(logits(dtype, graphs=graphs) - exact).norm() for graphs in (False, True)]
    assert 0 < errors[1] < 2 * errors[0] < exact.norm() / 2


def test_room_that_is_used_up_grows(monkeypatch: pytest.MonkeyPatch, repeated: list[DecodeStep]) -> None:
    model = tiny("qwen2").cuda()
    theirs = generated(model, DASH, 150, 130, graphs=False, max_new_tokens=300)
    monkeypatch.setattr(decoding, "ROOM", 8)
    same(generated(model, DASH, 150, 130, graphs=True, max_new_tokens=300), theirs)
    assert len({id(step) for step in repeated}) > 1


def test_all_that_can_happen_to_a_cache_between_tokens(repeated: list[DecodeStep]) -> None:
    model = tiny("qwen2").cuda()
    theirs = conversation(model, DASH, graphs=False)
    ours = conversation(model, DASH, graphs=True)
    assert len({id(step) for step in repeated}) > 5
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def test_a_call_outside_of_inference_mode_goes_on_where_one_inside_it_ended() -> None:
    model, logits = tiny("qwen2").cuda(), []
    for graphs in (False, True):
        with halting(model, DASH, decode_graphs=graphs):
            cache: Any = DynamicCache(config=model.config)
            with torch.inference_mode():
                for step, tokens in enumerate((150, 1, 1, 1)):
                    model(prompts(tokens, seed=step)[0].cuda(), **{CACHE: cache}, logits_to_keep=1)
            with torch.no_grad():
                own = [model(prompts(1, seed=step)[0].cuda(), **{CACHE: cache}).logits for step in range(3)]
        logits.append(torch.cat(own))
    assert (logits[0] - logits[1]).abs().max() < TOLERANCE


def test_threads_that_sample_do_not_meet_a_recording(repeated: list[DecodeStep]) -> None:
    model, prompt = tiny("qwen2").cuda(), prompts(150)[0].cuda()
    lengths = (10, 40, 20, 60)  # threads end one after another, until one is alone
    found: dict[int, torch.Tensor] = {}

    def generate(tokens: int) -> None:
        found[tokens] = halted.generate(prompt, max_new_tokens=tokens, do_sample=True)

    with halting(model, DASH, decode_graphs=True) as halted:
        threads = [threading.Thread(target=generate, args=(tokens,)) for tokens in lengths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        halted.generate(prompt, max_new_tokens=6, do_sample=True)
    assert {tokens: own.shape[1] - 150 for tokens, own in found.items()} == {tokens: tokens for tokens in lengths}
    assert repeated


def test_memory_of_graphs_is_free_after_the_block() -> None:
    model = tiny("qwen2").cuda()
    held = []
    for _ in range(4):
        generated(model, DASH, 150, graphs=True)
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[1:] == held[:1] * 3  # the first time, libraries allocate what they keep
