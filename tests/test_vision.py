"""Vision-language models: identity with the host, the masking oracle, batches, scopes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import (
    Dart,
    Dash,
    DashLayer,
    Dense,
    FastV,
    KeyNorm,
    LastTokenAttention,
    MaxSim,
    Policy,
    PolicyError,
    Progressive,
    Random,
    SparseVLM,
    Uniform,
    UnsupportedError,
    V2Drop,
    WindowAttention,
    halting,
)
from deltahalt.compat import merged_mrope
from deltahalt.families import family_of
from deltahalt.policy import LayerView
from oracle import Feed, Oracle
from test_hosts import flash_attention
from tiny import attributes
from tiny_vision import (
    ALONE,
    BATCH,
    IMAGE,
    MROPE,
    PIXELS,
    ROWS,
    SEVERAL,
    VIDEO,
    VISION,
    Prompts,
    Row,
    tiny_vision,
    vision_prompts,
)

TOLERANCE = 1e-5
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
VISUAL: dict[str, Any] = HALF | {"scope": "visual"}
APART = Progressive([Dash(**VISUAL), KeyNorm(**HALF | {"scope": "text", "pruning_ratio": 0.3})])
THREE = Progressive(
    [Dash(**VISUAL), Uniform(**VISUAL | {"start": 2, "pruning_ratio": 0.8}), Dash(**HALF | {"start": 3})]
)
STEPS = 4


def more(rows: int, count: int = 7, seed: int = 1) -> torch.Tensor:
    """Text that follows a prompt, [rows, count]."""
    return torch.randint(1, IMAGE, (rows, count), generator=torch.Generator().manual_seed(seed))


def logits_of(feed: Feed, prompts: Prompts) -> list[torch.Tensor]:
    """Logits of a prefill, of three single tokens, and of four tokens in one call."""
    tokens = more(len(prompts.ids))
    prefill = prompts.feed(feed)
    return [prefill, *(feed(tokens[:, step : step + 1]) for step in range(3)), feed(tokens[:, 3:])]


def generated(model: Any, prompts: Prompts, **options: Any) -> Any:
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True} | options
    with torch.no_grad():
        return model.generate(**prompts.call(), return_dict_in_generate=True, **options)


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def gap(name: str, attention: str, policy: Policy | Progressive, rows: tuple[Row, ...], **options: Any) -> float:
    """Largest difference of any logit between engine and oracle, decode steps included."""
    model = tiny_vision(name, attention)
    prompts = vision_prompts(model, name, rows)
    with halting(model, policy, **options) as halted:
        ours = logits_of(Feed(model), prompts)
    assert halted.report.stages
    oracle = Oracle(
        model,
        VISION[name].windows,
        halted.report,
        serving=[layer for layer, _ in halted.report.stages if options.get("halted_kv") == "frozen"],
        blocks=prompts.blocks if name == "gemma3" else None,
    )
    theirs = logits_of(oracle, prompts)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


# --- where nothing is halted ---


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


# --- the oracle ---


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VISION)
def test_visual_tokens_halt(name: str, attention: str, rows: tuple[Row, ...]) -> None:
    assert gap(name, attention, Dash(**VISUAL), rows) < TOLERANCE


@pytest.mark.parametrize("name", VISION)
def test_all_tokens_halt(name: str) -> None:
    assert gap(name, "sdpa", Dash(**HALF | {"start": 0}), BATCH) < TOLERANCE


@pytest.mark.parametrize("policy", [APART, THREE], ids=["apart", "three"])
@pytest.mark.parametrize("name", VISION)
def test_stages_of_different_scopes(name: str, policy: Progressive) -> None:
    assert gap(name, "sdpa", policy, BATCH) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_each_scope_has_its_own_ratio_at_one_layer(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, APART) as halted:
        prompts.feed(Feed(model))
    assert [layer for layer, _ in halted.report.stages] == [1]
    for row, kept in enumerate(halted.report.kept):
        visual = prompts.visual[row, prompts.mask[row].bool()]
        images, words = int(visual.sum()), int((~visual).sum())
        assert int(visual[kept].sum()) == images - round(0.6 * images)
        assert int((~visual[kept]).sum()) == words - round(0.3 * (words - 5))


EVERY = {
    "dash-inside": Dash(**VISUAL, boundary="attention"),
    "dash-layer": DashLayer(**VISUAL),
    "key-norm": KeyNorm(**VISUAL),
    "last-token-attention": LastTokenAttention(**VISUAL),
    "window-attention": WindowAttention(**VISUAL, window=3),
    "max-sim": MaxSim(**VISUAL, window=3, kernel=5),
    "random": Random(**VISUAL),
    "uniform": Uniform(**VISUAL),
    "text": Dash(**HALF | {"scope": "text"}),
    "fastv": FastV(),
    "dart": Dart(),
    "v2drop": V2Drop(pruning_ratio=0.3, second_ratio=0.6, third_ratio=0.9),
    "sparsevlm": SparseVLM(second_start=2, third_start=4),
}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava"])
@pytest.mark.parametrize("policy", EVERY)
def test_every_policy(policy: str, name: str) -> None:
    assert gap(name, "sdpa", EVERY[policy], BATCH) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_frozen_kv(name: str) -> None:
    assert gap(name, "sdpa", Dash(**VISUAL), BATCH, halted_kv="frozen") < TOLERANCE


@pytest.mark.parametrize("start", [0, 1, 2])
def test_deepstack_features_follow_the_kept_tokens(start: int) -> None:
    assert gap("qwen3_vl", "sdpa", Dash(**VISUAL | {"start": start, "pruning_ratio": 0.9}), BATCH) < TOLERANCE


@pytest.mark.parametrize("name", VISION)
def test_generate_equals_the_oracle(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    with halting(model, Dash(**VISUAL)) as halted:
        ours = generated(model, prompts)
    blocks = prompts.blocks if name == "gemma3" else None
    oracle = Oracle(model, VISION[name].windows, halted.report, blocks=blocks)
    theirs = [prompts.feed(oracle)[:, -1]]
    width = prompts.ids.shape[1]
    theirs += [oracle(ours.sequences[:, [place]])[:, -1] for place in range(width, width + STEPS - 1)]
    assert max(float((a - b).abs().max()) for a, b in zip(ours.logits, theirs, strict=True)) < TOLERANCE


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the decoder of a tiny model run on a stand-in for FlashAttention, whose kernels no CPU has."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)

    def make(name: str) -> Any:
        model = tiny_vision(name)
        model.get_decoder().config._attn_implementation = "flash_attention_2"
        return model

    return make


@pytest.mark.parametrize("policy", [Dense(), Dash(**VISUAL), APART], ids=["dense", "visual", "apart"])
@pytest.mark.parametrize("name", [*MROPE, "llava", "idefics3"])
def test_flash_attention(name: str, policy: Policy | Progressive, flash: Any) -> None:
    prompts = vision_prompts(tiny_vision(name), name, BATCH)
    ours, theirs = flash(name), tiny_vision(name)
    with halting(ours, policy), halting(theirs, policy):
        pairs = zip(logits_of(Feed(ours), prompts), logits_of(Feed(theirs), prompts), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < TOLERANCE


# --- batches ---


@pytest.mark.parametrize("policy", [Dash(**VISUAL), APART], ids=["visual", "apart"])
@pytest.mark.parametrize("name", VISION)
def test_batch_mates(name: str, policy: Policy | Progressive) -> None:
    model = tiny_vision(name)
    with halting(model, policy) as halted:
        together = logits_of(Feed(model), vision_prompts(model, name, BATCH))
        kept = halted.report.kept
        for row in range(len(BATCH)):
            tokens = more(len(BATCH))[row : row + 1]
            feed, prompts = Feed(model), vision_prompts(model, name, BATCH, only=row)
            alone = [prompts.feed(feed), *(feed(tokens[:, [step]]) for step in range(3)), feed(tokens[:, 3:])]
            assert torch.equal(halted.report.kept[0], kept[row])
            assert max(float((a[row] - b[0]).abs().max()) for a, b in zip(together, alone, strict=True)) < TOLERANCE


def test_a_prompt_too_short_stays_whole_beside_one_that_halts() -> None:
    assert gap("qwen2_vl", "sdpa", Dash(**VISUAL), BATCH, min_prompt_tokens=30) < TOLERANCE


def test_a_row_without_images_stays_whole_beside_one_with_images() -> None:
    rows: tuple[Row, ...] = (*SEVERAL, (25,))
    assert gap("qwen2_vl", "sdpa", Dash(**VISUAL), rows) < TOLERANCE
    model = tiny_vision()
    with halting(model, Dash(**VISUAL)) as halted:
        vision_prompts(model, "qwen2_vl", rows).feed(Feed(model))
    assert halted.report.lengths[1] == (25,) * 6


# --- what policies see ---


class Spy(Dash):
    """Keeps the views that it is shown."""

    views: ClassVar[list[LayerView]] = []

    def score(self, view: LayerView) -> torch.Tensor:
        self.views.append(view)
        return super().score(view)


@pytest.mark.parametrize("name", VISION)
def test_a_view_tells_visual_tokens_and_what_went_into_the_first_layer(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    entering: list[torch.Tensor] = []
    decoder = model.get_decoder()
    decoder.layers[0].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    Spy.views.clear()
    with halting(model, Progressive([Uniform(**HALF | {"start": 0}), Spy(**VISUAL | {"pruning_ratio": 0.9})])):
        prompts.feed(Feed(model))
    assert len(Spy.views) == 2
    for row, view in enumerate(Spy.views):
        real = prompts.mask[row].bool()
        assert view.kinds is not None
        assert view.visual is not None
        assert view.embeddings is not None
        assert torch.equal(view.kinds, prompts.visual[row, real].long())
        assert torch.equal(view.visual, prompts.visual[row, real][view.positions])
        assert 0 < len(view.positions) < view.prompt
        assert torch.equal(view.embeddings, entering[0][row, real])
        assert torch.equal(view.final_norm(view.hidden_in), decoder.norm(view.hidden_in))


@pytest.mark.parametrize("scope", ["image", "video", "visual"])
@pytest.mark.parametrize("name", MROPE)
def test_images_are_told_from_videos(name: str, scope: Any) -> None:
    """A prompt of an image of 2 x 4 tokens and a video of two frames of 2 x 3."""
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    types = torch.tensor([[0] * 3 + [2] * 12 + [0] * 4])
    clip = torch.where(types == 2, VIDEO, more(1, 19))
    ids = torch.cat([prompts.ids, clip], dim=1)
    given = prompts.inputs | {
        "input_ids": ids,
        "pixel_values_videos": torch.randn(48, PIXELS, generator=torch.Generator().manual_seed(3)),
        "video_grid_thw": torch.tensor([[2, 4, 6]]),
        "position_ids": torch.arange(ids.shape[1]).expand(3, 1, -1),
        "logits_to_keep": 1,
    }
    with torch.no_grad():
        expected = model(**given).logits
        with halting(model, Dense()):
            assert torch.equal(model(**given).logits, expected)
        with halting(model, Dash(start=1, scope=scope, pruning_ratio=0.5)) as halted:
            model(**given)
            kept = halted.report.kept[0]
            model(**given | {"input_ids": None, "inputs_embeds": model.get_input_embeddings()(ids)})
    assert torch.equal(halted.report.kept[0], kept)  # placeholders are found by their embeddings, too
    halts = torch.ones(ids.shape[1], dtype=torch.bool).index_fill(0, kept, False)
    of_images, of_videos = int(halts[ids[0] == IMAGE].sum()), int(halts[ids[0] == VIDEO].sum())
    assert int(halts.sum()) == of_images + of_videos
    assert (of_images, of_videos) == {"image": (4, 0), "video": (0, 6)}.get(scope, (of_images, 10 - of_images))


# --- leaving the model as it was ---


@pytest.mark.parametrize("name", VISION)
def test_after_the_block_the_model_is_as_before(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    expected = prompts.feed(Feed(model))
    before = attributes(model)
    with halting(model, Dash(**VISUAL)):
        prompts.feed(Feed(model))
    assert attributes(model) == before
    assert torch.equal(prompts.feed(Feed(model)), expected)


class Stopped(Exception):
    """Raised in the middle of a forward."""


def stop(*_: Any) -> None:
    raise Stopped


@pytest.mark.parametrize("place", ["layer", "decoder", "tower"])
@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "idefics3"])
def test_after_an_exception_the_model_is_as_before(name: str, place: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    tower = next(part for key, part in model.model.named_children() if key.startswith("vis"))
    part = {"layer": model.get_decoder().layers[3], "decoder": model.get_decoder(), "tower": tower}[place]
    prompts.feed(Feed(model))
    before = attributes(model)
    with halting(model, Dash(**VISUAL)) as halted:
        expected = prompts.feed(Feed(model))
        hook = part.register_forward_pre_hook(stop)
        with pytest.raises(Stopped):
            prompts.feed(Feed(model))
        hook.remove()
        # Nothing of the broken call is left: a text that calls the decoder by itself has no visual tokens.
        with torch.no_grad():
            embeds = model.get_input_embeddings()(more(1, prompts.ids.shape[1]))
            model.get_decoder()(inputs_embeds=embeds)
        assert halted.report.stages == ()
        assert torch.equal(prompts.feed(Feed(model)), expected)
    assert attributes(model) == before


def test_the_base_model_by_itself() -> None:
    model = tiny_vision()
    prompts = vision_prompts(model, "qwen2_vl", ALONE)
    with halting(model, Dash(**VISUAL)) as halted:
        expected = prompts.feed(Feed(model))
        kept = halted.report.kept[0]
    with halting(model.model, Dash(**VISUAL)) as halted, torch.no_grad():
        states = model.model(**prompts.call(), position_ids=prompts.positions).last_hidden_state
    assert torch.equal(halted.report.kept[0], kept)
    assert torch.equal(model.lm_head(states[:, -1:]), expected)


def test_a_call_in_another_thread_between_the_base_model_and_its_decoder() -> None:
    model = tiny_vision()
    prompts, text = (vision_prompts(model, "qwen2_vl", rows) for rows in (ALONE, ((20,),)))
    with halting(model, Dash(**VISUAL)), ThreadPoolExecutor(1) as pool:
        expected = prompts.feed(Feed(model))

        def meanwhile(*_: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                pool.submit(text.feed, Feed(model)).result()

        model.get_decoder().register_forward_pre_hook(meanwhile)
        assert torch.equal(prompts.feed(Feed(model)), expected)


# --- what is refused ---


def test_visual_tokens_of_a_decoder_by_itself_are_refused() -> None:
    with (
        pytest.raises(UnsupportedError, match="passed whole"),
        halting(tiny_vision().get_decoder(), Dash(**VISUAL)),
    ):
        pass


def test_an_unknown_family_around_a_known_decoder_is_refused() -> None:
    model = tiny_vision("llava")
    model.model.config.model_type = "fuyu"
    message = "'fuyu' is not a known family; known: gemma3, idefics3, llava, .*smolvlm"
    with pytest.raises(UnsupportedError, match=message), halting(model, Dense()):
        pass


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_halting_twice_is_refused(name: str) -> None:
    model = tiny_vision(name)
    for part in (model, model.model, model.get_decoder()):
        with halting(model, Dense()), pytest.raises(UnsupportedError, match="leave the other"), halting(part, Dense()):
            pass


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
@pytest.mark.parametrize("cache", ["static", "offloaded"])
def test_other_caches_are_refused(name: str, cache: str) -> None:
    model = tiny_vision(name)
    with halting(model, Dense()), pytest.raises(UnsupportedError, match="leave cache_implementation unset"):
        generated(model, vision_prompts(model, name, ALONE), cache_implementation=cache)


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_masks_by_kind_of_layer_are_refused(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    given = prompts.inputs | {"input_ids": prompts.ids, "position_ids": prompts.positions}
    mask = {"full_attention": None, "sliding_attention": None}
    with halting(model, Dense()), pytest.raises(UnsupportedError, match=r"give attention_mask as \[batch, tokens\]"):
        model(**given, attention_mask=mask)


@pytest.mark.parametrize("name", VISION)
def test_all_logits_of_a_halting_prefill_are_refused(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, ALONE)
    with halting(model, Dash(**VISUAL)), torch.no_grad(), pytest.raises(UnsupportedError, match="logits_to_keep=1"):
        model(**prompts.call(), position_ids=prompts.positions)
    with halting(model, Dash(**VISUAL)), torch.no_grad(), pytest.raises(UnsupportedError, match=r"\(up to 1\)"):
        model(**prompts.call(), position_ids=prompts.positions, logits_to_keep=2)


def test_a_layer_beyond_the_window_cannot_score_by_attention() -> None:
    model = tiny_vision("gemma3")
    prompts = vision_prompts(model, "gemma3", ALONE)
    with halting(model, FastV(start=3)), pytest.raises(UnsupportedError, match="choose a start layer with full"):
        prompts.feed(Feed(model))


def test_a_stage_too_deep_is_refused() -> None:
    with pytest.raises(PolicyError, match="start at 4 at most"), halting(tiny_vision(), FastV(start=5)):
        pass
