"""What policies see of a prompt with images, and what is left of the model afterwards."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch

from deltahalt import (
    Dash,
    Dense,
    Progressive,
    Uniform,
    halting,
)
from deltahalt.policies.layer_view import LayerView
from helpers.oracle import Feed
from helpers.tiny import attributes
from helpers.tiny_vision import (
    ALONE,
    BATCH,
    IMAGE,
    MROPE,
    PIXELS,
    VIDEO,
    VISION,
    tiny_vision,
    vision_prompts,
)
from helpers.vision_ways import HALF, VISUAL, more


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
    assert torch.allclose(model.lm_head(states[:, -1:]), expected, atol=1e-5)


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
