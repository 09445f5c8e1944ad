"""Tokens generated after pictures run as one recorded step, and equal those that run layer by layer."""

from typing import Any

import pytest
import torch

from deltahalt import Dash, Uniform, halting
from deltahalt.vision import UniformGroups
from helpers.recording import recorded_steps
from helpers.tiny_vision import BATCH, VISION, tiny_vision, vision_prompts

TOLERANCE = 1e-5
NO_WINDOWS = [name for name in VISION if name != "gemma3"]


def generated(name: str, policy: Any, *, graphs: bool | None, **options: Any) -> Any:
    model = tiny_vision(name)
    inputs = vision_prompts(model, name, BATCH).call() | {"max_new_tokens": 8, "do_sample": False}
    with halting(model, policy, decode_graphs=graphs, **options):
        return model.generate(**inputs, output_logits=True, return_dict_in_generate=True)


def same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    assert (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", NO_WINDOWS)
def test_every_family(name: str) -> None:
    policy = Dash(start=1, keep_first=2, keep_last=4)
    theirs = generated(name, policy, graphs=False)
    with recorded_steps() as ran:
        same(generated(name, policy, graphs=None), theirs)
    assert len(ran) == 6


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava"])
def test_tokens_that_were_dropped_before_the_first_layer(name: str) -> None:
    options = {"vision": UniformGroups(retain=0.5)}
    theirs = generated(name, Uniform(start=1, keep_last=4), graphs=False, **options)
    with recorded_steps() as ran:
        same(generated(name, Uniform(start=1, keep_last=4), graphs=None, **options), theirs)
    assert len(ran) == 6
