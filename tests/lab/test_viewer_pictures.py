"""The page of Fig. 8, of pictures: its record, and what a real browser shows."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deltahalt import halting
from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.answering.pictures import ask_about_pictures
from deltahalt.lab.evaluation.pictures.combinations import split_stages
from deltahalt.lab.viewer.record import PromptRecord, record_pictures
from deltahalt.loading.models import LoadedVisionModel, load_vision
from deltahalt.policies import Dense, parse_policy
from deltahalt.vision.policies import parse_vision_policy
from helpers.browser import Page
from helpers.viewing import GRIDS, SEEN, SMALL, choose, here, runs_in, said, shown, spans


@pytest.fixture(scope="module")
def small() -> LoadedVisionModel:
    return load_vision(SMALL, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def album(small: LoadedVisionModel, scenes: list[Image.Image]) -> PromptRecord:
    return record_pictures(small, scenes, "", "What is the number?", SEEN, max_new_tokens=6)


@pytest.fixture
def pictured(browser: Page, album: PromptRecord, tmp_path: Path) -> Iterator[Page]:
    yield from shown(browser, album, tmp_path)


def visual(album: PromptRecord) -> list[int]:
    return [at for image in album.images for at in range(image.begin, image.begin + image.rows * image.columns)]


def test_a_picture_s_tokens_have_no_text_and_the_text_around_them_stays(
    album: PromptRecord, small: LoadedVisionModel, scenes: list[Image.Image]
) -> None:
    ids = picture_inputs(small.model, small.tokenizer, small.image_processor, [scenes], ["What is the number?"])
    found = (ids["input_ids"][0] == small.model.config.image_token_id).nonzero().flatten().tolist()
    assert visual(album) == found
    assert [(image.rows, image.columns) for image in album.images] == GRIDS
    assert {album.tokens[at] for at in found} == {""}
    assert "What is the number?" in "".join(album.tokens)
    shown = Image.open(io.BytesIO(base64.b64decode(album.images[1].uri.partition(",")[2])))
    assert shown.tobytes() == scenes[1].tobytes()


def test_answers_are_those_of_look(album: PromptRecord, small: LoadedVisionModel, scenes: list[Image.Image]) -> None:
    methods: dict[str, Any] = {}
    for seen in SEEN:
        vision, policy = split_stages(seen)
        methods[seen] = (
            Dense() if policy is None else parse_policy(policy),
            None if vision is None else parse_vision_policy(vision),
        )
    full = {"full model": (Dense(), None)}
    wanted = ask_about_pictures(small, scenes, "What is the number?", full | methods, max_new_tokens=6)
    got = [album.answer, *(policy.answer for policy in album.policies)]
    assert [(answer.text, answer.tokens) for answer in got] == [
        (answer.text, answer.new_tokens) for answer in wanted.values()
    ]


def test_which_visual_tokens_halt_in_the_vit_and_in_the_decoder_is_what_both_stages_report(
    album: PromptRecord, small: LoadedVisionModel, scenes: list[Image.Image]
) -> None:
    ids = picture_inputs(small.model, small.tokenizer, small.image_processor, [scenes], ["What is the number?"])
    vision, policy = SEEN[1].split("/")
    with halting(small.model, policy, vision=vision) as halted, torch.no_grad():
        small.model(**ids, use_cache=False, logits_to_keep=1)
    own = album.policies[1]
    assert [stage.layer for stage in own.stages] == [-1, 4]
    left = [
        image.begin + place
        for image, kept in zip(album.images, halted.vision_report.kept, strict=True)
        for place in kept.tolist()
    ]
    assert [at for at in visual(album) if own.halted[at] != 0] == left
    assert [at for at, stage in enumerate(own.halted) if stage < 0] == halted.report.kept[0].tolist()
    deciding = own.stages[1]
    assert [at for begin, end in deciding.eligible for at in range(begin, end)] == left
    assert len(deciding.scores) == len(album.tokens) - sum(stage == 0 for stage in own.halted)


def test_policies_that_decide_at_one_layer_are_about_both_scopes_and_have_no_single_cut(
    small: LoadedVisionModel, scenes: list[Image.Image]
) -> None:
    ends = "keep_first=4,keep_last=6"
    both = f"dash:scope=visual,start=4,pruning_ratio=0.7+dash:scope=text,start=4,pruning_ratio=0.2,{ends}"
    record = record_pictures(small, scenes[:1], "word " * 20, "What is the number?", [both])
    (stage,) = record.policies[0].stages
    count = len(record.tokens)
    assert (stage.scope, stage.eligible, stage.cut) == ([(0, count)], [(4, count - 6)], None)


def test_the_page_shows_a_grid_over_each_picture(pictured: Page, album: PromptRecord) -> None:
    loaded = pictured.run("Promise.all([...document.images].map((e) => e.decode())).then(() => document.images.length)")
    assert loaded == len(GRIDS) * len(SEEN)
    assert "8 lines of 6 visual tokens" in pictured.run("document.images[0].alt")
    for image in album.images:
        frame = pictured.run(f"(({{x, y, width, height}}) => [x, y, width, height])({box(image.begin)})")
        last = image.begin + image.rows * image.columns - 1
        end = pictured.run(f"(({{right, bottom}}) => [right, bottom])({box(last)})")
        whole = pictured.run(
            f"(({{x, y, right, bottom}}) => [x, y, right, bottom])"
            f"(policies[0].cells[{image.begin}].parentElement.querySelector('img').getBoundingClientRect())"
        )
        assert [*frame[:2], *end] == pytest.approx(whole, abs=0.5)
        assert frame[2] == pytest.approx(frame[3], abs=0.5)


def box(token: int) -> str:
    return f"policies[0].cells[{token}].getBoundingClientRect()"


def test_a_patch_is_dimmed_from_its_layer_on(pictured: Page, album: PromptRecord) -> None:
    dimmed = "getComputedStyle(e, '::after').content !== 'none'"
    for layer in (11, 4, 3, -1):
        choose(pictured, "layer", layer)
        for column, policy in enumerate(album.policies):
            wanted = [stage >= 0 and policy.stages[stage].layer <= layer for stage in policy.halted]
            seen = spans(pictured, column, dimmed)
            assert [seen[at] for at in visual(album)] == [wanted[at] for at in visual(album)]


def test_a_patch_that_halted_in_the_vit_runs_in_no_layer(pictured: Page, album: PromptRecord) -> None:
    own = album.policies[1].halted
    for stage, running in ((0, [False] * 12), (1, [True] * 5 + [False] * 7), (-1, [True] * 12)):
        assert runs_in(pictured, 1, own.index(stage), album.layers) == running


def test_the_difference_dims_patches_that_both_halted_and_hatches_those_that_one_did(
    pictured: Page, album: PromptRecord
) -> None:
    choose(pictured, "pair", "0 2", "change")
    last = len(album.policies)
    hatched = spans(pictured, last, "getComputedStyle(e, '::after').backgroundImage.match(/-?45deg/)?.[0] ?? ''")
    dimmed = spans(pictured, last, "getComputedStyle(e, '::after').content !== 'none'")
    halted = [album.policies[column].halted for column in (0, 2)]
    marks = {(True, True): "", (True, False): "45deg", (False, True): "-45deg", (False, False): ""}
    for at in visual(album):
        stays = tuple(own[at] < 0 for own in halted)
        assert (hatched[at], dimmed[at]) == (marks[stays], stays != (True, True))


def test_details_of_a_patch_say_where_it_lies_and_where_it_halted(pictured: Page, album: PromptRecord) -> None:
    own, image = album.policies[1], album.images[1]
    members = range(image.begin, image.begin + image.rows * image.columns)
    for stage, words in ((0, "halted in the ViT, before layer 0"), (1, "halted after layer 4 of the decoder")):
        token = next(at for at in members if own.halted[at] == stage)
        pictured.run(f"policies[1].cells[{token}].dispatchEvent(new MouseEvent('mouseover', {{bubbles: true}}))")
        details = pictured.run("document.getElementById('details').innerText")
        line, column = divmod(token - image.begin, image.columns)
        assert f"image 2, line {1 + line}, column {1 + column}" in details
        assert words in details
    assert "halt in the ViT, before layer 0" in pictured.run("document.getElementById('policies').innerText")


def test_a_token_that_a_visual_scope_leaves_alone_is_outside_of_it_and_not_protected(
    pictured: Page, album: PromptRecord
) -> None:
    own, seen = album.policies[0].halted, visual(album)
    for token in (token for token, stage in enumerate(own) if stage < 0):
        wanted = "kept by its score" if token in seen else "outside the scope"
        assert f"active in all layers: {wanted}\n" in said(pictured, 0, token)
    last = len(album.tokens) - 1
    assert f"{album.policies[0].stages[0].scores[last]:.4g}, outside the scope" in said(pictured, 0, last)


@pytest.mark.parametrize("show", ["kept", "halted"])
def test_covered_patches_are_stepped_over(show: str, pictured: Page, album: PromptRecord) -> None:
    seen = set(visual(album))
    gone = [
        all((policy.halted[at] >= 0) == (show == "kept") for policy in album.policies)
        for at in range(len(album.tokens))
    ]
    assert {gone[at] for at in seen} == {True, False}
    choose(pictured, "show", show, "change")
    pictured.run("document.getElementById('text').focus()")
    pictured.press("Home")
    walked = [here(pictured)]
    for _ in album.tokens:
        pictured.press("ArrowRight")
        walked.append(here(pictured))
    assert sorted(seen.intersection(walked)) == [at for at in sorted(seen) if not gone[at]]


def test_a_phone_shows_the_page_without_scrolling_sideways(pictured: Page) -> None:
    pictured.resize(390, 800)
    assert pictured.run("document.documentElement.scrollWidth") <= 390
