"""The engine on CUDA devices; the same ideas as the tests on the CPU, which CI runs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import import_utils

from deltahalt import Dash, Dense, Forecast, Policy, Report, SingleInputKV, Uniform, WindowAttention, halting
from deltahalt.engine.backends import WITHOUT_CUDNN
from deltahalt.host import flash_four, fused
from deltahalt.host.lower_right import attend_lower_right
from deltahalt.lab.bench.measure import measure
from deltahalt.lab.bench.prompts import random_prompts
from deltahalt.vision import UniformGroups
from helpers.oracle import Feed, Oracle
from helpers.tiny import FULL, FULL_VARIANTS, LAYERS, prompts, tiny
from helpers.tiny_vision import BATCH, tiny_vision, vision_prompts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

FLASH = next(
    (
        f"flash_attention_{number}"
        for number in (4, 3, 2)
        if getattr(import_utils, f"is_flash_attn_{number}_available", bool)()
    ),
    None,
)
flash_attention = pytest.mark.skipif(FLASH is None, reason="needs FlashAttention")

POLICIES = [Dash(keep_first=2, keep_last=8), WindowAttention(keep_first=2, keep_last=8, window=8, chunk=4)]
IDS, MASK = prompts(150, 130)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_halted_is_the_host_bit_for_bit(dtype: torch.dtype, padded: bool) -> None:
    model = tiny("qwen2", dtype=dtype).cuda()
    inputs = {"input_ids": IDS.cuda(), "attention_mask": MASK.cuda()} if padded else {"input_ids": IDS.cuda()}
    with torch.no_grad():
        plain = model(**inputs, logits_to_keep=1).logits
        with halting(model, Dash(pruning_ratio=0.0)):
            assert torch.equal(model(**inputs, logits_to_keep=1).logits, plain)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_halting_agrees_with_the_masking_oracle(policy: Policy) -> None:
    model = tiny("qwen2")
    report = _halt(model.cuda(), policy)
    oracle = Oracle(model.cpu(), FULL, report)
    expected = [oracle(IDS, MASK, logits_to_keep=1), oracle(IDS[:, :3])]
    model.cuda()
    with halting(model, policy):
        feed = Feed(model)
        feed.mask = feed.mask.cuda()
        got = [feed(IDS.cuda(), MASK.cuda(), logits_to_keep=1), feed(IDS[:, :3].cuda())]
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.cpu() - theirs).abs().max() < 1e-4  # CPU and GPU kernels differ by more than the engine does


def test_the_bench_sees_what_memory_was_held() -> None:
    model = tiny("qwen2").cuda()
    policies: dict[str, Any] = {"dash": Dash(start=1, keep_first=2, keep_last=8)}
    ((row,),) = measure(model, "tiny", policies, random_prompts(model, 200, 2, seed=0), repeats=1)
    assert row.full.peak_bytes is not None
    assert row.halted.peak_bytes is not None
    assert row.full.peak_bytes > sum(weight.nbytes for weight in model.parameters()) + row.full.kv_bytes
    assert row.full.peak_bytes >= row.halted.peak_bytes


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("policy", [Dense(), *POLICIES], ids=lambda policy: policy.name)
def test_pieces_are_as_near_to_float32_as_the_whole_prompt(policy: Policy, padded: bool) -> None:
    def logits(dtype: torch.dtype, size: int | None) -> torch.Tensor:
        model = tiny("qwen2", dtype=dtype).cuda()
        with halting(model, policy, piece_tokens=size):
            return _logits(model, padded)

    exact = logits(torch.float32, None)
    assert (logits(torch.float32, 32) - exact).abs().max() < 1e-4
    if isinstance(policy, Dense):  # else rounding may choose other tokens
        errors = [(logits(torch.bfloat16, size) - exact).norm() for size in (None, 32)]
        assert 0 < errors[1] < 2 * errors[0] < exact.norm() / 2


@pytest.mark.parametrize("padded", [False, True])
def test_pieces_run_on_flash_attention(padded: bool) -> None:
    """With all other kernels switched off, nothing else is left that could run; scores of 1M keys would not fit."""
    model = tiny("qwen2", dtype=torch.bfloat16).cuda()
    inputs = {"input_ids": IDS.cuda(), "attention_mask": (MASK if padded else torch.ones_like(IDS)).cuda()}
    with torch.no_grad(), halting(model, Dense(), piece_tokens=32), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert model(**inputs, logits_to_keep=1).logits.isfinite().all()


@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "no cudnn"])
@pytest.mark.parametrize(("queries", "keys", "size"), [(300, 1000, 64), (64, 65, 128), (512, 4096, 128)])
def test_attention_to_the_lower_right_is_near_to_float32(queries: int, keys: int, size: int, cudnn: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(2, 4, queries, size, device="cuda", generator=generator)
    key, value = torch.randn(2, 2, 2, keys, size, device="cuda", generator=generator)
    expected = attend_lower_right(query.cpu(), key.cpu(), value.cpu())
    half = (part.bfloat16() for part in (query, key, value))
    with nullcontext() if cudnn else WITHOUT_CUDNN:
        found = attend_lower_right(*half)
    assert torch.allclose(found.float().cpu(), expected, atol=0.02)


@pytest.mark.skipif(flash_four.kernel() is None, reason="needs FlashAttention 4 and a GPU that it runs on")
@pytest.mark.parametrize(("queries", "keys", "size"), [(300, 1000, 64), (64, 65, 128), (777, 777, 128)])
def test_flash_attention_4_is_near_to_float32(
    queries: int, keys: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_four, "FEWEST_PAIRS", 0)
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(2, 4, queries, size, device="cuda", generator=generator)
    key, value = torch.randn(2, 2, 2, keys, size, device="cuda", generator=generator)
    expected = attend_lower_right(query.cpu(), key.cpu(), value.cpu())
    half = [part.bfloat16() for part in (query, key, value)]
    assert flash_four.takes(*half)
    assert torch.allclose(attend_lower_right(*half).float().cpu(), expected, atol=0.02)


def test_the_memory_of_a_layer_does_not_grow_with_the_width_of_its_mlp() -> None:
    model = tiny("qwen2", dtype=torch.bfloat16, intermediate_size=4096, max_position_embeddings=32_768).cuda()
    peaks = []
    for size in (None, 1024):
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad(), halting(model, Dense(), piece_tokens=size):
            model(prompts(32_768)[0].cuda(), logits_to_keep=1)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] - peaks[1] > 31 * 1024 * 4096 * 2  # bytes of one inner tensor that is a piece, not the prompt


@two_devices
@pytest.mark.parametrize("start", [2, 3], ids=["last layer of a device", "first layer of the next"])
def test_layers_on_two_devices_halt_as_on_one(start: int) -> None:
    policy = WindowAttention(start=start, keep_first=2, keep_last=8, window=8, chunk=4)
    whole = _halt(tiny("qwen2").cuda(), policy)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    places |= {f"model.layers.{layer}": layer * 2 // LAYERS for layer in range(LAYERS)}
    spread = _halt(dispatch_model(tiny("qwen2"), places), policy)
    for one, two in zip(whole.kept, spread.kept, strict=True):
        assert torch.equal(one, two)


@two_devices
def test_kernels_run_on_the_device_of_their_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_four, "FEWEST_PAIRS", 0)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    places |= {f"model.layers.{layer}": layer * 2 // LAYERS for layer in range(LAYERS)}
    dtype = torch.bfloat16
    found = []
    for model in (tiny("qwen2", dtype=dtype).cuda(), dispatch_model(tiny("qwen2", dtype=dtype), places)):
        with torch.no_grad(), halting(model, Dash(start=1, keep_first=2, keep_last=8), fused_kernels=True):
            found.append(model(IDS.cuda(), logits_to_keep=1).logits.float().cpu())
    assert torch.allclose(*found, atol=0.02)


@pytest.mark.skipif(fused.liger() is None, reason="needs liger-kernel")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_fused_kernels_are_as_near_to_float32_as_the_host(variant: str, padded: bool) -> None:
    def logits(dtype: torch.dtype, wanted: bool) -> torch.Tensor:
        model = tiny(variant, dtype=dtype).cuda()
        mask = MASK if padded else torch.ones_like(IDS)
        with torch.no_grad(), halting(model, Dense(), fused_kernels=wanted):
            return model(IDS.cuda(), attention_mask=mask.cuda(), logits_to_keep=1).logits.float().cpu()

    exact = logits(torch.float32, False)
    assert (logits(torch.float32, True) - exact).abs().max() < 1e-4
    theirs, ours = ((logits(torch.bfloat16, wanted) - exact).norm() for wanted in (False, True))
    assert ours < 1.5 * theirs


def test_layers_on_cpu_and_gpu_halt_as_on_one() -> None:
    policy = Dash(start=1, keep_first=2, keep_last=8)  # layer 1 is the first on the GPU
    whole = _halt(tiny("qwen2"), policy, "cpu")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": 0, "lm_head": 0}
    places |= {f"model.layers.{layer}": 0 if layer else "cpu" for layer in range(LAYERS)}
    spread = _halt(dispatch_model(tiny("qwen2"), places, main_device="cuda:0"), policy)
    for one, two in zip(whole.kept, spread.kept, strict=True):
        assert torch.equal(one, two)


@flash_attention
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_halted_is_the_host_with_flash_attention_bit_for_bit(padded: bool) -> None:
    model = tiny("qwen2", FLASH, torch.bfloat16).cuda()
    expected = _logits(model, padded)
    with halting(model, Dash(pruning_ratio=0.0)):
        assert torch.equal(_logits(model, padded), expected)


@flash_attention
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "policy",
    [Uniform(start=1, keep_first=2, keep_last=8), SingleInputKV(start=1, keep_last=8), Forecast(start=1, keep_last=8)],
)
def test_flash_attention_is_as_near_to_float32_as_sdpa(policy: Policy, padded: bool) -> None:
    def logits(attention: str, dtype: torch.dtype) -> torch.Tensor:
        model = tiny("qwen2", attention, dtype).cuda()
        with halting(model, policy):
            return _logits(model, padded)

    _as_near(logits)


@flash_attention
@pytest.mark.parametrize("policy", [Dense(), Uniform(start=1, scope="visual")], ids=lambda policy: policy.name)
def test_flash_attention_in_vit_and_decoder_is_as_near_to_float32_as_sdpa(policy: Policy) -> None:
    def logits(attention: str, dtype: torch.dtype) -> torch.Tensor:
        model = tiny_vision("qwen2_vl", attention)
        prompt = vision_prompts(model, "qwen2_vl", BATCH)
        inputs = {name: part.cuda() for name, part in prompt.call().items()}
        model.to(dtype).cuda()
        with torch.no_grad(), halting(model, policy, vision=UniformGroups(retain=0.5)):
            return model(**inputs, logits_to_keep=1).logits

    _as_near(logits)


def _logits(model: Any, padded: bool) -> torch.Tensor:
    """Logits of the last prompt token and of three that follow, [B, 4, V]."""
    feed, mask = Feed(model), MASK if padded else torch.ones_like(IDS)
    feed.mask = feed.mask.cuda()
    return torch.cat([feed(IDS.cuda(), mask.cuda(), logits_to_keep=1), feed(IDS[:, :3].cuda())], dim=1)


def _as_near(logits: Callable[[str, torch.dtype], torch.Tensor]) -> None:
    """FlashAttention errs no more than twice as much as sdpa does in the same precision."""
    assert FLASH is not None
    exact = logits("sdpa", torch.float32)
    errors = [(logits(name, torch.bfloat16) - exact).norm() for name in ("sdpa", FLASH)]
    assert 0 < errors[1] < 2 * errors[0] < exact.norm() / 2


def _halt(model: torch.nn.Module, policy: Policy, device: str = "cuda:0") -> Report:
    with torch.no_grad(), halting(model, policy) as halted:
        model(input_ids=IDS.to(device), attention_mask=MASK.to(device), logits_to_keep=1)
    stages = tuple((layer, tuple(kept.cpu() for kept in rows)) for layer, rows in halted.report.stages)
    return replace(halted.report, stages=stages)
