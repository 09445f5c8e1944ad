"""A block of a vision-language model: its own context, copies, and features that are NaN without a ViT policy."""

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from deltahalt import Dash, Dense, InputError, halting
from deltahalt.vision import VisionDash, halting_vision
from helpers.oracle import Feed
from helpers.tiny_vision import BATCH, tiny_vision, vision_prompts
from helpers.vision_ways import generated

DASH = Dash(start=1, pruning_ratio=0.5, scope="visual")
VISION = VisionDash(retain=0.5, start=1)


def logits(model: Any, name: str = "qwen2_vl") -> torch.Tensor:
    return vision_prompts(model, name, BATCH).feed(Feed(model))


@contextmanager
def overflowing(part: Any, value: float) -> Iterator[None]:
    """Have the first row of the module's output hold the value, as an overflow in float16 leaves it."""

    def spoil(_: Any, args: Any, output: Any) -> Any:
        spoilt = output.clone()
        spoilt[..., :1, :] = value
        return spoilt

    hook = part.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("policy", [DASH, Dense()], ids=["dash", "dense"])
def test_features_that_are_nan_without_a_policy_in_the_vit_are_refused(policy: Any) -> None:
    """They would be taken for dropped, and the model would answer without them."""
    model = tiny_vision()
    visual = model.model.visual
    with halting(model, policy), overflowing(visual.merger, torch.nan), pytest.raises(InputError, match="in float16"):
        logits(model)


@pytest.mark.parametrize("policy", [VISION, VisionDash(retain=1.0)], ids=["half", "all"])
def test_a_vit_that_overflows_under_a_policy_is_refused(policy: Any) -> None:
    model = tiny_vision()
    last = model.model.visual.blocks[-1].mlp
    with halting(model, DASH, vision=policy), overflowing(last, torch.inf), pytest.raises(InputError, match="finite"):
        logits(model)


def test_a_thread_without_the_block_sees_the_whole_image() -> None:
    model = tiny_vision()
    full = logits(model)
    with halting(model, DASH, vision=VISION) as attached:
        ours = logits(model)
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(logits, model).result(), full)
            handled = pool.submit(attached.generate, **call(model)).result()
    assert not torch.equal(ours, full)
    with halting_vision(model, VISION), halting(model, DASH):
        assert torch.equal(logits(model), ours)
        assert torch.equal(model.generate(**call(model)), handled)
    assert not any(name in vars(part) for part in model.modules() for name in ("forward", "generate"))


def call(model: Any) -> dict[str, Any]:
    return vision_prompts(model, "qwen2_vl", BATCH).call() | {"max_new_tokens": 3, "do_sample": False}


def test_two_threads_with_two_policies_on_one_model() -> None:
    model = tiny_vision()
    retained = {0.25: None, 0.5: None, 0.75: None}
    barrier = threading.Barrier(len(retained))

    def run(retain: float, wait: bool = True) -> torch.Tensor:
        with halting(model, DASH, vision=VisionDash(retain=retain, start=1)):
            if wait:
                barrier.wait(60)
            return logits(model)

    with ThreadPoolExecutor(len(retained)) as pool:
        together = dict(zip(retained, pool.map(run, retained), strict=True))
    assert all(torch.equal(together[retain], run(retain, wait=False)) for retain in retained)


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "idefics3"])
def test_a_copy_made_in_the_block_is_an_ordinary_model(name: str) -> None:
    model = tiny_vision(name)
    prompts = vision_prompts(model, name, BATCH)
    full = generated(model, prompts).sequences
    with halting(model, DASH, vision=VisionDash(retain=0.5)):
        twin = copy.deepcopy(model)
        assert torch.equal(generated(twin, prompts).sequences, full)
    assert torch.equal(generated(twin, prompts).sequences, full)
