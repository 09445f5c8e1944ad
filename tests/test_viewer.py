"""The page of Fig. 8: its record against what halting reports, and the page in a real browser."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from browser import Page, browsing, find_browser
from deltahalt import InputError, halting
from deltahalt.documents import build_prompt
from deltahalt.evaluation.pictures.inputs import picture_inputs
from deltahalt.evaluation.pictures.samples import held_out_pictures
from deltahalt.models import LoadedModel, LoadedVisionModel, load_vision
from deltahalt.viewer.page import render
from deltahalt.viewer.record import PromptRecord, pieces, record_pictures, record_prompt

SMALL = Path(__file__).parents[1] / "assets/small-vlm"
DOCUMENT = "The tide is in.\nThe </script><b>bell</b> &amp; the caf\u00e9 \U0001f600 rang. <!-- " + "In the mist. " * 8
QUESTION = "When is the tide in, </script>?"
DASH = "dash:start=1,pruning_ratio=0.5,keep_first=4,keep_last=8"
STAGES = (
    "key-norm:start=1,pruning_ratio=0.3,keep_first=6,keep_last=8,chunk=4"
    "+dash:start=3,pruning_ratio=0.6,keep_first=2,keep_last=8,boundary=attention"
)
POLICIES = [DASH, STAGES, "uniform:start=2,pruning_ratio=0.25,keep_first=4,keep_last=8", "dense"]


@pytest.fixture(scope="module")
def record(loaded_tiny: LoadedModel) -> PromptRecord:
    return record_prompt(loaded_tiny, DOCUMENT, QUESTION, POLICIES)


@pytest.fixture(scope="module")
def ids(loaded_tiny: LoadedModel) -> torch.Tensor:
    prompt = build_prompt(loaded_tiny.tokenizer, loaded_tiny.model.config, DOCUMENT, QUESTION)
    return prompt["input_ids"]


# --- the record ---


def test_tokens_joined_are_the_prompt(record: PromptRecord, ids: torch.Tensor) -> None:
    assert "".join(record.tokens) == f"{DOCUMENT}\n\n{QUESTION}"
    assert len(record.tokens) == ids.shape[1]
    assert {"\u00e9", "\U0001f600", "", "th"} <= set(record.tokens)


def test_a_prompt_cut_inside_a_character_still_ends(loaded_tiny: LoadedModel) -> None:
    ids = loaded_tiny.tokenizer("a\u00e9", add_special_tokens=False)["input_ids"]
    assert pieces(loaded_tiny.tokenizer, ids[:-1]) == ["a", "\N{REPLACEMENT CHARACTER}"]
    assert pieces(loaded_tiny.tokenizer, []) == []


@pytest.mark.parametrize("policy", range(len(POLICIES)))
def test_who_halts_where_is_what_halting_reports(
    policy: int, record: PromptRecord, loaded_tiny: LoadedModel, ids: torch.Tensor
) -> None:
    with halting(loaded_tiny.model, POLICIES[policy]) as halted, torch.no_grad():
        loaded_tiny.model(ids, logits_to_keep=1)
    own = record.policies[policy]
    assert own.policy == POLICIES[policy]
    assert own.speedup == pytest.approx(halted.report.speedup_bound, abs=1e-4)
    assert [stage.layer for stage in own.stages] == [layer for layer, _ in halted.report.stages]
    for number, (_, (kept,)) in enumerate(halted.report.stages):
        stays = [token for token, stage in enumerate(own.halted) if stage < 0 or stage > number]
        assert stays == kept.tolist()
    assert set(own.halted) == set(range(-1, len(own.stages)))


def test_scores_are_the_policy_s_and_the_cut_is_between_those_that_stay_and_those_that_halt(
    record: PromptRecord, loaded_tiny: LoadedModel, ids: torch.Tensor
) -> None:
    updates: list[torch.Tensor] = []
    hook = loaded_tiny.model.model.layers[1].self_attn.register_forward_hook(
        lambda _m, _a, out: updates.append(out[0][0].norm(dim=-1))
    )
    with torch.no_grad():
        loaded_tiny.model(ids)
    hook.remove()
    own, (stage,) = record.policies[0], record.policies[0].stages
    assert stage.scores == pytest.approx(updates[0].tolist(), rel=1e-4)
    assert stage.ranked is None
    assert stage.scope == [(0, len(record.tokens))]
    assert stage.eligible == [(4, len(record.tokens) - 8)]
    eligible = range(*stage.eligible[0])
    assert min(stage.scores[token] for token in eligible if own.halted[token] < 0) == stage.cut
    assert max(stage.scores[token] for token in eligible if own.halted[token] == 0) <= stage.cut


def test_chunks_are_ranked_by_their_mean_and_later_stages_score_who_is_left(record: PromptRecord) -> None:
    own = record.policies[1]
    first, second = own.stages
    begin, end = first.eligible[0]
    for token in range(begin, end):
        chunk = range(token - (token - begin) % 4, min(token - (token - begin) % 4 + 4, end))
        mean = sum(first.scores[one] for one in chunk) / len(chunk)
        assert first.ranked[token] == pytest.approx(mean, rel=1e-4)
    assert first.ranked[:begin] == first.scores[:begin]
    assert len(second.scores) == sum(stage != 0 for stage in own.halted)
    assert second.eligible == [(2, len(record.tokens) - 8)]


def test_a_policy_that_does_not_rank_has_no_cut(record: PromptRecord) -> None:
    assert record.policies[2].stages[0].cut is None
    assert not record.policies[3].stages


# --- the page ---


@pytest.fixture(scope="module")
def file(record: PromptRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(render(record), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("the page is not tried, as there is no Chromium here: apt-get install chromium")
    with browsing(program, tmp_path_factory.mktemp("profile")) as page:
        page.start()
        yield page


@pytest.fixture
def page(browser: Page, file: Path) -> Iterator[Page]:
    """The page, opened anew; no script may complain, and nothing may be loaded."""
    browser.open(file)
    yield browser
    assert browser.errors == []


def test_the_page_needs_nothing_from_elsewhere(file: Path, record: PromptRecord) -> None:
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|@import|url\(", html.replace("\\u003c", ""))
    data = re.search(r'<script id="record" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["tokens"] == record.tokens


def spans(page: Page, column: int, value: str) -> list[Any]:
    """A JavaScript expression of each token's element `e`, in one column."""
    cells = f"[...document.querySelectorAll('.cell:nth-child({column + 1}) span')]"
    return list(page.run(f"{cells}.map((e) => {value})"))


def choose(page: Page, control: str, value: object, event: str = "input") -> None:
    page.run(f"{{const c = byId('{control}'); c.value = '{value}'; c.dispatchEvent(new Event('{event}'))}}")


def fates(page: Page, column: int) -> list[str]:
    return spans(page, column, "e.classList.contains('halted') ? e.className.match(/stage-./)[0] : 'kept'")


def test_every_column_is_the_prompt_word_for_word(page: Page, record: PromptRecord) -> None:
    for column in range(len(POLICIES)):
        assert spans(page, column, "e.textContent") == record.tokens
    assert "asked: When is the tide in, </script>?" in page.run("document.body.innerText")


def test_a_token_looks_halted_from_its_layer_on(page: Page, record: PromptRecord) -> None:
    for layer in (5, 3, 2, 1, 0, -1):
        choose(page, "layer", layer)
        for column, policy in enumerate(record.policies):
            done = [stage.layer <= layer for stage in policy.stages]
            wanted = [f"stage-{stage + 1}" if stage >= 0 and done[stage] else "kept" for stage in policy.halted]
            assert fates(page, column) == wanted
            shown = page.run(f"document.querySelectorAll('#names h2')[{column}].textContent")
            assert shown.startswith(f"{wanted.count('kept')} of {len(wanted)} active")


def test_a_higher_score_has_no_lighter_shade(page: Page, record: PromptRecord) -> None:
    choose(page, "shade", "score", "change")
    shades = spans(page, 0, "Number(e.className.match(/q(.)/)?.[1] ?? 0)")
    (stage,) = record.policies[0].stages
    begin, end = stage.eligible[0]
    assert set(shades[:begin] + shades[end:]) == {0}
    ranked = sorted(range(begin, end), key=lambda token: stage.scores[token])
    assert [shades[token] for token in ranked] == sorted(shades[begin:end])
    assert set(shades[begin:end]) == {1, 2, 3, 4, 5}
    colours = spans(page, 0, "getComputedStyle(e).backgroundColor")
    assert len({colours[token] for token in range(begin, end)}) == 5


@pytest.mark.parametrize("show", ["kept", "halted"])
def test_the_other_side_is_an_ellipsis_a_run(show: str, page: Page, record: PromptRecord) -> None:
    choose(page, "show", show, "change")
    visible = spans(page, 0, "e.getClientRects().length > 0 && getComputedStyle(e).fontSize !== '0px'")
    ellipses = spans(
        page, 0, "getComputedStyle(e, '::before').content.includes('\\u2026') && e.getClientRects().length > 0"
    )
    halted = [stage >= 0 for stage in record.policies[0].halted]
    assert [at for at, seen in enumerate(visible) if seen] == [
        at for at, gone in enumerate(halted) if gone == (show == "halted")
    ]
    hidden = [gone != (show == "halted") for gone in halted]
    assert [at for at, dots in enumerate(ellipses) if dots] == [
        at for at, gone in enumerate(hidden) if gone and (at == 0 or not hidden[at - 1])
    ]


def test_the_mouse_shows_score_rank_and_layer(page: Page, record: PromptRecord) -> None:
    (stage,) = record.policies[0].stages
    token = next(at for at, halted in enumerate(record.policies[0].halted) if halted == 0 and record.tokens[at].strip())
    box = page.run(
        f"{{const e = document.querySelectorAll('.cell:nth-child(1) span')[{token}];"
        "e.scrollIntoView({block: 'center'}); const box = e.getBoundingClientRect();"
        "[box.x + box.width / 2, box.y + box.height / 2]}"
    )
    page.move(*box)
    details = page.run("document.getElementById('details').innerText")
    begin, end = stage.eligible[0]
    rank = 1 + sum(stage.scores[one] > stage.scores[token] for one in range(begin, end))
    assert f"{json.dumps(record.tokens[token])} token {token} of {len(record.tokens)}" in details
    assert "halted after layer 1" in details
    assert f"at layer 1: {stage.scores[token]:.4g}, rank {rank} of {end - begin}" in details
    assert "chunk's mean" in details
    for column in range(len(POLICIES)):
        assert [at for at, here in enumerate(spans(page, column, "e.classList.contains('here')")) if here] == [token]


def said(page: Page, column: int, token: int) -> str:
    """What the page says of a token under one policy."""
    page.run(f"point({token})")
    return str(page.run(f"document.querySelectorAll('#details .columns > div')[{column}].innerText"))


def test_a_token_that_stays_is_protected_or_kept_by_its_score_or_chosen(page: Page, record: PromptRecord) -> None:
    for column, (policy, kept) in enumerate(
        zip(record.policies[:3], ("kept by its score",) * 2 + ("chosen",), strict=True)
    ):
        begin, end = policy.stages[-1].eligible[0]
        for token in (token for token, stage in enumerate(policy.halted) if stage < 0):
            wanted = kept if begin <= token < end else "protected, as the prompt's ends are"
            assert f"active in all layers: {wanted}\n" in said(page, column, token)
    assert said(page, 3, 0) == "active in all layers"


def here(page: Page) -> int:
    return int(re.search(r"token (\d+) of", page.run("document.getElementById('details').innerText"))[1])


def test_the_keyboard_reaches_every_control_and_walks_the_text(page: Page, record: PromptRecord) -> None:
    reached = []
    for _ in range(9):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id"))
    assert reached[:8] == ["layer", "show", "shade", "find", "previous", "next", "theme", "text"]
    page.run("document.getElementById('text').focus()")
    page.press("Home")
    assert here(page) == 0
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert here(page) == 2
    page.press("ArrowLeft")
    assert here(page) == 1
    page.press("ArrowDown")
    assert here(page) > record.tokens.index("\n")
    page.press("ArrowUp")
    assert here(page) == 1
    page.press("End")
    assert here(page) == len(record.tokens) - 1
    page.press("ArrowRight")
    assert here(page) == len(record.tokens) - 1


def test_hidden_tokens_are_stepped_over(page: Page) -> None:
    choose(page, "show", "halted", "change")
    choose(page, "layer", 1)
    page.run("document.getElementById('text').focus()")
    page.press("Home")
    walked = []
    for _ in range(40):
        page.press("ArrowRight")
        walked.append(here(page))
    columns = [spans(page, column, "e.getClientRects().length > 0") for column in range(len(POLICIES))]
    seen = [at for at, boxes in enumerate(zip(*columns, strict=True)) if any(boxes)]
    assert walked == seen[1:41] != list(range(1, 41))


def test_finding_marks_every_match_and_goes_from_one_to_the_next(page: Page, record: PromptRecord) -> None:
    page.run("document.getElementById('find').focus()")
    for letter in "THE T":
        page.press(letter)
    text, starts = (
        "".join(record.tokens).lower(),
        [found.start() for found in re.finditer("the t", f"{DOCUMENT}\n\n{QUESTION}".lower())],
    )
    ends = [sum(map(len, record.tokens[: at + 1])) for at in range(len(record.tokens))]
    first = [next(at for at, end in enumerate(ends) if end > start) for start in starts]
    assert len(starts) == 2
    assert page.run("document.getElementById('found').textContent") == "1 of 2"
    assert here(page) == first[0]
    page.press("Enter")
    assert page.run("document.getElementById('found').textContent") == "2 of 2"
    assert here(page) == first[1]
    marked = spans(page, 0, "e.classList.contains('hit')")
    assert "".join(token for token, hit in zip(record.tokens, marked, strict=True) if hit).lower() == "the t" * 2
    choose(page, "find", "not there")
    assert page.run("document.getElementById('found').textContent") == "0 of 0"
    assert text.count("the t") == 2


def test_the_histogram_counts_eligible_tokens_and_cuts_where_the_policy_does(page: Page, record: PromptRecord) -> None:
    own, (stage,) = record.policies[0], record.policies[0].stages
    begin, end = stage.eligible[0]
    scores = stage.scores[begin:end]
    drawn = page.run(
        "{const svg = document.querySelector('article svg'); const sum = (name) => [...svg.querySelectorAll(name)]"
        ".reduce((all, bar) => all + Number(bar.getAttribute('height')), 0);"
        "[sum('.kept'), sum('.halted'), Number(svg.querySelector('.cut').getAttribute('x1'))]}"
    )
    stays = sum(halted < 0 for halted in own.halted[begin:end])
    assert drawn[0] / drawn[1] == pytest.approx(stays / (len(scores) - stays))
    assert drawn[2] == pytest.approx(60 * (stage.cut - min(scores)) / (max(scores) - min(scores)), abs=1e-6)
    captions = page.run("[...document.querySelectorAll('figcaption')].map((e) => e.textContent)")
    assert captions[0].endswith(f"eligible tokens halt after layer 1, cut at {stage.cut:.4g}")
    assert captions[-1].endswith("after layer 2, with no single cut")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme: str, page: Page) -> None:
    page.scheme(scheme)
    choose(page, "layer", 5)
    paper = luminance(page.run("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for name in (".cell .halted", ".cell .stage-2", ".cell .kept", "#facts"):
        ink = luminance(page.run(f"getComputedStyle(document.querySelector('{name}')).color"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5
    page.run("document.getElementById('theme').click()")
    assert (luminance(page.run("getComputedStyle(document.body).backgroundColor")) > 0.5) == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG) of a CSS colour such as rgb(1, 2, 3)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# --- pictures ---

PRUNED = "dash:start=4,scope=visual,pruning_ratio=0.75"
SEEN = [PRUNED, f"vision-dash:start=2,retain=0.35/{PRUNED}", "vision-dash:start=2,retain=0.5"]
GRIDS = [(8, 6), (4, 10)]  # lines and columns of visual tokens


@pytest.fixture(scope="module")
def small() -> LoadedVisionModel:
    return load_vision(SMALL, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    pixels = held_out_pictures(1)[0].pixels
    return [Image.fromarray(pixels[: 16 * rows, : 16 * columns]) for rows, columns in GRIDS]


@pytest.fixture(scope="module")
def album(small: LoadedVisionModel, scenes: list[Image.Image]) -> PromptRecord:
    return record_pictures(small, scenes, "", "What is the number?", SEEN)


@pytest.fixture
def pictured(browser: Page, album: PromptRecord, tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "page.html").write_text(render(album), encoding="utf-8")
    browser.open(tmp_path / "page.html")
    yield browser
    assert browser.errors == []


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


# --- the command ---


def test_the_command_shows_an_image(deltahalt: Callable[..., int], tmp_path: Path, scenes: list[Image.Image]) -> None:
    picture, page = tmp_path / "scene.png", tmp_path / "page.html"
    scenes[0].save(picture)
    asked = ("view", "--model", SMALL, "--image", picture, "--image", picture, "--question", "What?", "--out", page)
    assert deltahalt(*asked, "--policies", f"{PRUNED} {SEEN[1]}") == 0
    html = page.read_text(encoding="utf-8")
    assert html.count('"uri":"data:image/png;base64,') == 2
    assert f'"policy":"{SEEN[1]}"' in html
    assert str(tmp_path) not in html
    assert deltahalt(*asked) == 0
    assert '"policy":"dash:scope=visual"' in page.read_text(encoding="utf-8")


def test_the_command_refuses_images_that_cannot_be_shown(
    deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path, scenes: list[Image.Image], capsys: Any
) -> None:
    picture, broken = tmp_path / "scene.png", tmp_path / "broken.png"
    scenes[0].save(picture)
    broken.write_bytes(picture.read_bytes()[:200])
    asked = ("view", "--question", "What?", "--out", tmp_path / "page.html", "--policies", PRUNED)
    for file in (broken, tmp_path / "none.png"):
        assert deltahalt(*asked, "--model", SMALL, "--image", file) == 2
        assert f"cannot read {file}" in capsys.readouterr().err
    assert deltahalt(*asked, "--model", tiny_folder, "--image", picture) == 2
    assert "no vision-language model" in capsys.readouterr().err
    assert deltahalt(*asked[:-1], "auto", "--model", "no/such", "--image", picture) == 2
    assert "auto is for prompts of text" in capsys.readouterr().err
    assert deltahalt(*asked, "--model", SMALL) == 2
    assert "give --document, --image, or both" in capsys.readouterr().err
    assert deltahalt(*asked[:-1], SEEN[1], "--model", SMALL, "--document", "-") == 2
    assert "give an --image" in capsys.readouterr().err


def test_the_command_writes_a_page(deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path) -> None:
    document, page = tmp_path / "document.txt", tmp_path / "new" / "page.html"
    document.write_text(DOCUMENT)
    asked = ("view", "--model", tiny_folder, "--document", document, "--question", QUESTION, "--out", page)
    assert deltahalt(*asked, "--policies", f"{DASH} dense {DASH}") == 0
    html = page.read_text(encoding="utf-8")
    assert html.count(f'"policy":"{DASH}"') == 1
    assert '"policy":"dense"' in html


def test_the_command_refuses_no_policy_and_an_unknown_one_before_it_loads_a_model(
    deltahalt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("view", "--model", "no/such", "--document", "-", "--question", "?", "--out", tmp_path / "page.html")
    assert deltahalt(*asked, "--policies", " ") == 2
    assert "no policy is named" in capsys.readouterr().err
    assert deltahalt(*asked, "--policies", "dash magic") == 2
    assert "no policy 'magic'" in capsys.readouterr().err
    assert deltahalt(*asked, "--policies", "gemfilter") == 2
    assert "no policy 'gemfilter'" in capsys.readouterr().err


def test_a_question_is_needed(loaded_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="question is empty"):
        record_prompt(loaded_tiny, DOCUMENT, " ", [DASH])
