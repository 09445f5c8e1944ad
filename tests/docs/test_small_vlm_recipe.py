"""The recipe of the small Qwen2-VL: what is held out, true answers, and a training forward equal to Hugging Face's."""

import random
import re
import sys
from pathlib import Path

import pytest
import torch

from deltahalt.lab.evaluation.pictures import questions, scenes

RECIPE = Path(__file__).parents[2] / "recipes/small_vlm"


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules, which import one another by bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE)
        names = ("model", "batches", "train")
        yield {name: __import__(name) for name in names}
        for name in names:
            sys.modules.pop(name)


def scenes_of(*, held_out):
    return [scenes.make_scene(seed, 256, 256, held_out=held_out) for seed in range(300)]


def test_training_never_shows_or_names_what_is_held_out():
    trained, unseen = (scenes_of(held_out=held_out) for held_out in (False, True))
    written, kept = ({item.text for scene in part for item in scene.of("number", "word")} for part in (trained, unseen))
    assert not written & kept
    pairs = scenes.HELD_OUT_PAIRS
    shown, reserved = (
        {(item.colour, item.text) for scene in part for item in scene.items} for part in (trained, unseen)
    )
    assert not shown & pairs
    assert pairs <= reserved
    draw = random.Random(0)
    asked = {pair[0] for scene in trained for kind in questions.KINDS if (pair := questions.ask(scene, kind, draw))}
    assert not [text for text in asked for colour, shape in pairs if re.search(rf"{colour} {shape}(s|es)?\b", text)]


def test_counts_and_presence_are_those_of_the_scene():
    draw = random.Random(0)
    for scene in scenes_of(held_out=False):
        shapes = [(item.colour, item.text) for item in scene.of("shape")]
        question, answer = questions.ask(scene, "count", draw)
        words = re.fullmatch(r"How many (.+) are there\?", question)[1].replace("crosses", "cross").split()
        words = [word if word == "cross" else word.removesuffix("s") for word in words if word != "shapes"]
        assert answer == str(sum(set(words) <= set(shape) for shape in shapes))
        question, answer = questions.ask(scene, "presence", draw)
        pair = re.fullmatch(r"Is there an? (\w+) (\w+)\?", question).groups()
        assert answer == ("yes" if pair in shapes else "no")


def test_the_training_forward_is_that_of_the_model(recipe):
    torch.manual_seed(0)
    tokenizer = recipe["model"].build_tokenizer()
    prefix = tokenizer(recipe["model"].BEFORE_IMAGE)["input_ids"]
    model = recipe["model"].build_model(tokenizer, tiny=True)
    net = recipe["model"].Batched(model, 43, 9, prefix)
    assert recipe["train"].check_forward(net, tokenizer, recipe["batches"].Maker(tokenizer, 1024)) < 1e-5
