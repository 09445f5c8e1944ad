"""Fused kernels of a prefill: the host's results up to rounding, and the host as before after it."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deltahalt import Dash, Dense, InputError, Policy, halting
from deltahalt.host import fused
from helpers.tiny import FULL_VARIANTS, LAYERS, VARIANTS, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
NORMS = {"qwen3": 4, "gemma3": 0}  # in each layer; two in the others
KEY_NORMS = {"qwen3": 2, "gemma3": 0}  # those that give the keys of a layer; one in the others
SWIGLU = {"phi3": 0, "gemma3": 0}  # one in the others


class Kernels:
    """Stand-ins for the kernels of liger-kernel. They count their calls; the rotation is in place, as there."""

    def __init__(self) -> None:
        self.activations = self.rotations = 0
        self.ops = SimpleNamespace(
            LigerSiLUMulFunction=SimpleNamespace(apply=self.activate),
            LigerRopeFunction=SimpleNamespace(apply=self.rotate),
        )

    def activate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        self.activations += 1
        return F.silu(gate) * up

    def rotate(
        self, queries: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.rotations += 1
        for heads in (queries, keys):
            half = heads.shape[-1] // 2
            turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
            heads.copy_(heads * cos[:, None] + turned * sin[:, None])
        return queries, keys


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    stand_ins = Kernels()
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setattr(fused, "liger", lambda: stand_ins.ops)
    return stand_ins


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shape of each tensor that was normalized by one kernel."""
    shapes: list[torch.Size] = []
    rms_norm = F.rms_norm

    def counted(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(hidden.shape)
        return rms_norm(hidden, *rest)

    monkeypatch.setattr(F, "rms_norm", counted)
    return shapes


def logits(model: Any, policy: Policy, wanted: bool | None, *lengths: int) -> torch.Tensor:
    ids, mask = prompts(*lengths)
    with torch.no_grad(), halting(model, policy, fused_kernels=wanted):
        out: torch.Tensor = model(ids, attention_mask=mask, logits_to_keep=1).logits
    return out


@pytest.mark.parametrize("lengths", [(60,), (60, 41)], ids=str)
@pytest.mark.parametrize("policy", [Dense(), DASH], ids=lambda policy: policy.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family(
    variant: str, policy: Policy, lengths: tuple[int, ...], kernels: Kernels, norms: list[torch.Size]
) -> None:
    model = tiny(variant)
    theirs = logits(model, policy, False, *lengths)
    assert not norms
    assert not kernels.activations + kernels.rotations
    ours = logits(model, policy, True, *lengths)
    assert (ours - theirs).abs().max() < 1e-5
    family = next((name for name in ("qwen3", "gemma3", "phi3") if variant.startswith(name)), "")
    exits = policy is DASH and VARIANTS[variant].windows[-1] is None
    assert len(norms) == NORMS.get(family, 2) * LAYERS + exits * KEY_NORMS.get(family, 1)
    assert kernels.activations == SWIGLU.get(family, 1) * LAYERS
    assert kernels.rotations == (0 if variant == "phi3-partial" else LAYERS)  # rotates a part of each head


@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_bfloat16_is_as_near_to_float32_as_the_host(variant: str, kernels: Kernels) -> None:
    exact = logits(tiny(variant), Dense(), False, 60)
    model = tiny(variant, dtype=torch.bfloat16)
    theirs, ours = ((logits(model, Dense(), wanted, 60).float() - exact).norm() for wanted in (False, True))
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("policy", [Dense(), DASH], ids=lambda policy: policy.name)
def test_by_default_the_host_computes_on_a_cpu(policy: Policy, kernels: Kernels, norms: list[torch.Size]) -> None:
    assert torch.equal(logits(tiny(), policy, None, 60), logits(tiny(), policy, False, 60))
    assert not norms
    assert not kernels.activations + kernels.rotations


def test_generated_tokens_run_on_the_host(kernels: Kernels, norms: list[torch.Size]) -> None:
    model = tiny()
    with halting(model, DASH, fused_kernels=True):
        model.generate(prompts(60)[0], max_new_tokens=5, do_sample=False)
    assert len(norms) == 2 * LAYERS + 1  # the last layer's, for K and V of tokens that do not run through it
    assert kernels.rotations == LAYERS


def test_after_the_prefill_the_host_is_as_before(kernels: Kernels) -> None:
    model = tiny()
    code = fused.sys.modules[type(model.model.layers[0].self_attn).__module__]
    rotate = code.apply_rotary_pos_emb
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    logits(model, DASH, True, 60)
    assert code.apply_rotary_pos_emb is rotate
    assert before == {name: module.__dict__ for name, module in model.named_modules()}


@pytest.mark.parametrize("wrapped", [False, True], ids=["a part", "within a part"])
def test_a_hook_keeps_what_it_saw(wrapped: bool, kernels: Kernels) -> None:
    model = tiny()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    attention = model.model.layers[2].self_attn
    projection = attention.q_proj
    if wrapped:
        attention.q_proj = torch.nn.Sequential(projection)
    projection.register_forward_hook(lambda _, __, output: seen.append((output, output.clone())))
    logits(model, DASH, True, 60)
    ((output, copy),) = seen
    assert torch.equal(output, copy)
    assert not kernels.rotations
    assert kernels.activations == LAYERS


def _compiled(model: Any) -> None:
    for layer in model.model.layers:
        layer.compile(backend="eager")


def _narrow_norms(model: Any) -> None:
    model.double()
    for layer in model.model.layers:
        layer.input_layernorm.float()
        layer.post_attention_layernorm.float()


LEFT: dict[str, Callable[[Any], None]] = {"compiled layers": _compiled, "norms in another dtype": _narrow_norms}


@pytest.mark.parametrize("change", LEFT.values(), ids=LEFT)
def test_what_is_left_to_the_host(change: Callable[[Any], None], kernels: Kernels, norms: list[torch.Size]) -> None:
    model = tiny()
    change(model)
    logits(model, DASH, True, 60)
    assert not norms


def test_autograd_follows_the_host(kernels: Kernels, norms: list[torch.Size]) -> None:
    model, ids = tiny(), prompts(60)[0]
    with halting(model, DASH, fused_kernels=True):
        model(ids, logits_to_keep=1).logits.sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    assert not norms
    assert not kernels.activations + kernels.rotations


@pytest.mark.parametrize("given", ["auto", 1])
def test_only_true_false_and_none_are_taken(given: Any) -> None:
    with pytest.raises(InputError, match=r"fused_kernels is .*; give True, False or None"):
        halting(tiny(), DASH, fused_kernels=given).__enter__()
