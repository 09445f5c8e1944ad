"""Asking about pictures: `look` says what `generate` says, and what it took is what the reports say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltahalt import Dense, WindowAttention, halting
from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.lab.evaluation.pictures.samples import held_out_pictures
from deltahalt.loading.models import LoadedVisionModel, load_vision
from deltahalt.vision import UniformGroups, VisionZip

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'deltahalt[vision]'")
from deltahalt.answering.pictures import ask_about_pictures  # noqa: E402

SMALL = Path(__file__).parents[2] / "assets" / "small-vlm"
QUESTION = "What is the number?"
HALTED = WindowAttention(scope="visual", start=2, pruning_ratio=0.5)


@pytest.fixture(scope="module")
def small() -> LoadedVisionModel:
    return load_vision(str(SMALL), dtype="float32", device="cpu")


@pytest.fixture
def picture(tmp_path: Path) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return Image.open(tmp_path / "picture.png")


def test_answers_are_those_of_generate_and_costs_those_of_the_reports(small: LoadedVisionModel, picture: Any) -> None:
    model: Any = small.model
    methods = {"full": (Dense(), None), "both": (HALTED, VisionZip(retain=0.5)), "late": (HALTED, None)}
    answers = ask_about_pictures(small, [picture, picture], QUESTION, methods, max_new_tokens=6)
    inputs = picture_inputs(model, small.tokenizer, small.image_processor, [[picture, picture]], [QUESTION])
    prompt = inputs["input_ids"].shape[1]
    for name, (policy, vision) in methods.items():
        with torch.no_grad(), halting(model, policy, vision=vision) as halted:
            said = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, prompt:]
        answer = answers[name]
        assert answer.text == small.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert (answer.prompt_tokens, answer.new_tokens) == (prompt, len(said))
        assert answer.lengths == tuple(halted.report.lengths[0])
        assert answer.cache_bytes == halted.report.cache_bytes
        assert answer.flops == halted.report.flops + (halted.vision_report.flops if vision else 0)
        assert answer.prefill_seconds > 0
        assert answer.decode_seconds >= 0
    assert answers["full"].lengths[-1] == prompt
    assert answers["both"].lengths[-2] < answers["late"].lengths[-2] < prompt  # the last layer runs on one token
    with torch.no_grad():
        plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, prompt:]
    assert answers["full"].text == small.tokenizer.decode(plain, skip_special_tokens=True).strip()


def test_the_sample_picture_is_the_first_held_out_one_and_is_read_right(small: LoadedVisionModel) -> None:
    (first,) = held_out_pictures(1)
    sample = Image.open(SMALL.parent / "picture.png")
    drawn, kept = first.pixels.astype(int), np.asarray(sample).astype(int)
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 2  # versions of Pillow round edges of letters differently
    assert (first.questions[0].text, first.questions[0].answer) == (QUESTION, "94")
    methods = {"full": (Dense(), None), "halved": (Dense(), VisionZip(retain=0.5))}
    answers = ask_about_pictures(small, [sample], QUESTION, methods, max_new_tokens=8)
    assert {answer.text for answer in answers.values()} == {"94"}


def test_the_command_takes_a_method_and_a_share_for_the_vit(
    deltahalt: Callable[..., int], tmp_path: Path, small: LoadedVisionModel, picture: Any, capsys: Any
) -> None:
    asked = ("look", "--model", SMALL, "--image", tmp_path / "picture.png", "--question", QUESTION, "--json")
    vision = ("--vision-policy", "uniform-groups", "--vision-retain", "0.25")
    assert deltahalt(*asked, *vision, "--compare") == 0
    full, halved = json.loads(capsys.readouterr().out)["answers"]
    assert (full["policy"], full["ran"]) == ("full model", "dense")
    assert (halved["policy"], halved["question"]) == ("uniform-groups:retain=0.25/dense", QUESTION)
    methods = {"": (Dense(), UniformGroups(retain=0.25)), "full": (Dense(), UniformGroups(retain=1))}
    expected = ask_about_pictures(small, [picture.convert("RGB")], QUESTION, methods)
    assert (halved["lengths"], halved["flops"]) == ([*expected[""].lengths], expected[""].flops)
    assert full["flops"] == expected["full"].flops
    assert deltahalt(*asked) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["ran"] == "window-attention:scope=visual"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vision-retain", "0.5"), "add --vision-policy visionzip"),
        (("--policy", "auto"), "auto is for prompts of text"),
        (("--vision-policy", "magic"), "no policy 'magic'"),
        (("--vision-policy", "visionzip", "--vision-retain", "2"), "retain is 2"),
        (("--vision-policy", "visionzip:retain=0.3", "--vision-retain", "0.5"), "retain is given twice"),
        (("--policy", "snapkv"), "no policy 'snapkv'"),
    ],
)
def test_the_command_refuses_what_cannot_be_before_it_loads_a_model(
    deltahalt: Callable[..., int], options: tuple[str, ...], message: str, capsys: Any
) -> None:
    assert deltahalt("look", "--model", "no/such", "--image", "none.png", "--question", "?", *options) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
