"""What a host does to a model, such as offloading, compiling or another attention kernel, changes no result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import (
    BothEnds,
    Dash,
    DashLayer,
    Dense,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    Policy,
    Progressive,
    Random,
    Uniform,
    UnsupportedError,
    WindowAttention,
    halting,
)
from helpers.flash import flash_attention
from helpers.memory import Largest
from helpers.oracle import Feed
from helpers.tiny import FULL_VARIANTS, LAYERS, SLIDING_VARIANTS, VOCAB, WINDOW, prompts, tiny

TOLERANCE = 1e-5
DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
INSIDE = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3, boundary="attention")
LAYER = DashLayer(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
TWO_LAYERS = WindowAttention(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3, window=3, layers=2)


def logits_of(model: Any, lengths: tuple[int, ...] = (40, 29), steps: tuple[int, ...] = (1, 3, 1)) -> torch.Tensor:
    """Logits of a prefill and of continuations of so many tokens each, [B, 1 + sum, V]."""
    feed = Feed(model)
    more = torch.randint(1, VOCAB, (len(lengths), sum(steps)), generator=torch.Generator().manual_seed(1))
    logits = [feed(*prompts(*lengths), logits_to_keep=1)]
    return torch.cat(logits + [feed(part) for part in more.split(steps, dim=1)], dim=1)


def halted(model: Any, policy: Policy | Progressive = DASH, *args: Any) -> torch.Tensor:
    with halting(model, policy):
        return logits_of(model, *args)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return float((ours - theirs).abs().max()) < TOLERANCE


# accelerate


DEVICE_MAPS = {
    "layers on two devices": {
        "model.embed_tokens": "cpu",
        **{f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(LAYERS)},
        "model.norm": "disk",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
    "decoder as a whole": {"model": "disk", "lm_head": "cpu"},
}


@pytest.mark.parametrize("policy", [DASH, INSIDE], ids=["block", "attention"])
@pytest.mark.parametrize("variant", ["llama", "phi3-partial", "gemma3"])
@pytest.mark.parametrize("device_map", DEVICE_MAPS.values(), ids=DEVICE_MAPS)
def test_offloaded(device_map: dict[str, str], variant: str, policy: Policy, tmp_path: Path) -> None:
    expected = halted(tiny(variant), policy)
    model = dispatch_model(tiny(variant), device_map, main_device="cpu", offload_dir=tmp_path)
    assert model.model.layers[DASH.start].mlp.down_proj.weight.is_meta  # away, until a hook brings it
    assert same(halted(model, policy), expected)


def test_offloaded_in_whole_layers(tmp_path: Path) -> None:
    """The hooks that bring the weights sit on the layers, not on their parts."""
    expected = halted(tiny())
    model = tiny()
    model = dispatch_model(
        model,
        DEVICE_MAPS["layers on two devices"],
        main_device="cpu",
        offload_dir=tmp_path,
        preload_module_classes=[type(model.model.layers[0]).__name__],
    )
    assert same(halted(model), expected)


@pytest.mark.parametrize("map_name", DEVICE_MAPS)
def test_offloaded_generate(map_name: str, tmp_path: Path) -> None:
    ids, mask = prompts(40, 29)
    model = tiny()
    with halting(model, DASH):
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    model = dispatch_model(model, DEVICE_MAPS[map_name], main_device="cpu", offload_dir=tmp_path)
    with halting(model, DASH):
        ours = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, expected)


def test_a_hook_on_the_decoder_runs_around_the_halted_forward() -> None:
    calls: list[str] = []

    class Recorder(AlignDevicesHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append("before")
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:
            calls.append("after")
            return output

    model = tiny()
    add_hook_to_module(model.model, Recorder())
    with halting(model, DASH) as attached:
        Feed(model)(prompts(40)[0], logits_to_keep=1)
    assert calls == ["before", "after"]
    assert len(attached.report.kept[0]) == 19


def test_hooks_on_every_layer_fire_in_a_halting_prefill() -> None:
    model, fired = tiny(), []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: fired.append(index))
    with halting(model, DASH):
        Feed(model)(prompts(40)[0], logits_to_keep=1)
    assert fired == list(range(LAYERS))


# torch.compile


def test_compiled_layers() -> None:
    expected, plain = halted(tiny()), logits_of(tiny())
    model = tiny()
    for layer in model.model.layers:
        layer.compile(backend="eager", dynamic=True)
    assert same(halted(model), expected)
    assert same(logits_of(model), plain)  # and what was compiled does not outlive the block


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a tiny model that runs on `flash_attention`."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)

    def make(variant: str) -> Any:
        model = tiny(variant)
        model.config._attn_implementation = "flash_attention_2"
        return model

    return make


@pytest.mark.parametrize("lengths", [(40,), (40, 29)], ids=str)
@pytest.mark.parametrize("variant", ["llama", *SLIDING_VARIANTS])
def test_the_stand_in_for_flash_attention(variant: str, lengths: tuple[int, ...], flash: Any) -> None:
    assert same(logits_of(flash(variant), lengths), logits_of(tiny(variant), lengths))


@pytest.mark.parametrize("lengths", [(40,), (40, 40), (40, 29), (40, 5)], ids=str)
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_flash_attention(variant: str, lengths: tuple[int, ...], flash: Any) -> None:
    assert same(halted(flash(variant), DASH, lengths), halted(tiny(variant), DASH, lengths))


@pytest.mark.parametrize("lengths", [(40,), (40, 29)], ids=str)
@pytest.mark.parametrize("variant", ["llama", *SLIDING_VARIANTS])
def test_flash_attention_where_nothing_is_halted(variant: str, lengths: tuple[int, ...], flash: Any) -> None:
    assert torch.equal(halted(flash(variant), Dense(), lengths), logits_of(flash(variant), lengths))


@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_flash_attention_on_a_prompt_within_the_window(variant: str, flash: Any) -> None:
    policy = KeyNorm(start=1, pruning_ratio=0.9, keep_first=0, keep_last=1)
    arguments = policy, (WINDOW - 3, WINDOW - 4), (1, 1)
    assert same(halted(flash(variant), *arguments), halted(tiny(variant), *arguments))


@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_flash_attention_on_a_prompt_beyond_the_window(variant: str, flash: Any) -> None:
    with pytest.raises(UnsupportedError, match='load the model with attn_implementation="sdpa"'):
        halted(flash(variant))


def test_packed_prompts_are_refused_with_flash_attention(flash: Any) -> None:
    """The host would tell them apart by their position_ids, which the halted layers do not get."""
    model = flash("llama")
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    with halting(model, DASH), pytest.raises(UnsupportedError, match="pass one sequence a row"):
        model(prompts(40)[0], position_ids=positions, logits_to_keep=1)


# Memory


SETTINGS: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_last": 16}
EVERY_POLICY = {
    "dash": Dash(**SETTINGS),
    "dash-inside": Dash(**SETTINGS, boundary="attention"),
    "dash-layer": DashLayer(**SETTINGS),
    "key-norm": KeyNorm(**SETTINGS),
    "last-token-attention": LastTokenAttention(**SETTINGS),
    "window-attention": WindowAttention(**SETTINGS, window=16, layers=2),
    "max-sim": MaxSim(**SETTINGS, window=16),
    "both-ends": BothEnds(**SETTINGS | {"keep_first": 64, "keep_last": 32}),
    "random": Random(**SETTINGS),
    "uniform": Uniform(**SETTINGS),
}


def largest_tensor(policy: Policy, tokens: int) -> int:
    model = tiny(num_hidden_layers=3, max_position_embeddings=4096)
    with halting(model, policy), Largest() as largest:
        Feed(model)(prompts(tokens)[0], logits_to_keep=1)
    return largest.elements


@pytest.mark.parametrize("policy", EVERY_POLICY.values(), ids=EVERY_POLICY)
def test_memory_grows_with_the_prompt_and_not_with_its_square(policy: Policy) -> None:
    small, large = largest_tensor(policy, 1024), largest_tensor(policy, 2048)
    assert large < 2.2 * small
    assert large < 2048 * 2048 / 8
