"""The page of Fig. 8, of a text, in a real browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deltahalt.lab.viewer.page import render
from deltahalt.lab.viewer.record import AnswerRecord, PromptRecord
from helpers.browser import Page
from helpers.viewing import (
    DOCUMENT,
    POLICIES,
    QUESTION,
    box,
    choose,
    contrast,
    fates,
    here,
    is_seen,
    long_record,
    luminance,
    said,
    said_of_each,
    shown,
    spans,
)


@pytest.fixture(scope="module")
def file(record: PromptRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(render(record), encoding="utf-8")
    return file


@pytest.fixture
def page(browser: Page, file: Path) -> Iterator[Page]:
    """The page, opened again; no script may complain, and nothing may be loaded."""
    browser.open(file)
    yield browser
    assert browser.errors == []


def test_the_page_needs_nothing_from_elsewhere(file: Path, record: PromptRecord) -> None:
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|@import|url\(", html.replace("\\u003c", ""))
    data = re.search(r'<script id="record" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["tokens"] == record.tokens


def test_every_column_is_the_prompt_word_for_word(page: Page, record: PromptRecord) -> None:
    for column in range(len(POLICIES)):
        assert spans(page, column, "e.textContent") == record.tokens
    assert "Question When is the tide in, </script>?" in page.run("document.body.innerText")


def test_a_token_looks_halted_from_its_layer_on(page: Page, record: PromptRecord) -> None:
    for layer in (5, 3, 2, 1, 0, -1):
        choose(page, "layer", layer)
        for column, policy in enumerate(record.policies):
            done = [stage.layer <= layer for stage in policy.stages]
            wanted = [f"stage-{stage + 1}" if stage >= 0 and done[stage] else "kept" for stage in policy.halted]
            assert fates(page, column) == wanted
            shown = page.run(f"document.querySelectorAll('#strip-names button')[{column}].textContent")
            assert shown.startswith(f"{'ABCD'[column]} {wanted.count('kept')} active")


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


def test_a_token_that_stays_is_protected_or_kept_by_its_score_or_chosen(page: Page, record: PromptRecord) -> None:
    for column, (policy, kept) in enumerate(
        zip(record.policies[:3], ("kept by its score",) * 2 + ("chosen",), strict=True)
    ):
        begin, end = policy.stages[-1].eligible[0]
        stay = [token for token, stage in enumerate(policy.halted) if stage < 0]
        for token, words in zip(stay, said_of_each(page, column, stay), strict=True):
            wanted = kept if begin <= token < end else "protected, as the prompt's ends are"
            assert f"active in all layers: {wanted}\n" in words
    assert said(page, 3, 0) == "D: active in all layers"


def test_the_keyboard_reaches_every_control_and_walks_the_text(page: Page, record: PromptRecord) -> None:
    reached = []
    for _ in range(15):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.parentElement.id"))
    controls = ["layer", "pair", "show", "shade", "find", "previous", "next", "theme"]
    assert reached[:14] == [*controls, *["strip-names"] * len(POLICIES), "overview", "text"]
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
        "{const svg = document.querySelector('article svg:has(.cut)');"
        "const sum = (name) => [...svg.querySelectorAll(name)]"
        ".reduce((all, bar) => all + Number(bar.getAttribute('height')), 0);"
        "[sum('.kept'), sum('.halted'), Number(svg.querySelector('.cut').getAttribute('x1'))]}"
    )
    stays = sum(halted < 0 for halted in own.halted[begin:end])
    assert drawn[0] / drawn[1] == pytest.approx(stays / (len(scores) - stays))
    assert drawn[2] == pytest.approx(60 * (stage.cut - min(scores)) / (max(scores) - min(scores)), abs=1e-6)
    captions = page.run("[...document.querySelectorAll('figure:not(.layers) figcaption')].map((e) => e.textContent)")
    assert captions[0].endswith(f"eligible tokens halt after layer 1, cut at {stage.cut:.4g}")
    assert captions[-1].endswith("after layer 2, with no single cut")


def test_a_page_of_16_thousand_tokens_can_be_walked_and_searched(browser: Page, tmp_path: Path) -> None:
    count, place = 16_384, 12_000
    for long in shown(browser, long_record(count, place), tmp_path):
        for column in range(2):
            assert len(spans(long, column, "0")) == count
        choose(long, "find", "bell")
        assert spans(long, 1, "e.classList.contains('hit')").index(True) == place
        assert "at layer 1: 24, rank" in said(long, 0, 16_029)  # 16,029 leaves 24
        left, top, width, _ = box(long, "#overview")
        long.click(left + width / 2, top + 8)
        assert here(long) == pytest.approx(count / 2, abs=count / width)
        assert is_seen(long, here(long))


def test_text_of_the_record_is_never_read_as_html(browser: Page, record: PromptRecord, tmp_path: Path) -> None:
    name, question, answer = (f"<img src=x onerror=none({n})> &amp; <!-- {n}" for n in range(3))
    policies = [replace(policy, policy=name, answer=AnswerRecord(answer, 3, True)) for policy in record.policies]
    hostile = replace(record, model=name, question=question, policies=policies, answer=AnswerRecord("", 1, False))
    for page in shown(browser, hostile, tmp_path):
        choose(page, "pair", "0 1", "change")
        assert page.run("document.images.length") == 0
        assert page.run("document.title").startswith(name)
        text = page.run("document.body.textContent")
        for part in ("#policies", "#names", "#answers"):
            assert name in page.run(f"document.querySelector('{part}').textContent")
        assert question in text
        assert answer in page.run("document.querySelector('#answers').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme: str, page: Page) -> None:
    page.scheme(scheme)
    choose(page, "layer", 5)
    paper = luminance(page.run("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for name in (".cell .halted", ".cell .stage-2", ".cell .kept", "#facts"):
        ink = luminance(page.run(f"getComputedStyle(document.querySelector('{name}')).color"))
        assert contrast(ink, paper) >= 4.5
    page.run("document.getElementById('theme').click()")
    assert (luminance(page.run("getComputedStyle(document.body).backgroundColor")) > 0.5) == (scheme == "dark")
