"""The overview of the whole prompt, and the picture of tokens by layers, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltahalt.lab.viewer.record import PromptRecord
from helpers.browser import Page
from helpers.viewing import POLICIES, box, choose, here, is_seen, long_record, runs_in, shown

COUNT, PLACE = 6_000, 4_500


@pytest.fixture
def page(browser: Page, record: PromptRecord, tmp_path: Path) -> Iterator[Page]:
    yield from shown(browser, record, tmp_path)


@pytest.fixture
def long(browser: Page, tmp_path: Path) -> Iterator[Page]:
    yield from shown(browser, long_record(COUNT, PLACE), tmp_path)


def bars(page: Page, strip: int) -> list[float]:
    """The heights of a strip's bars, from 0 to 1."""
    path = page.run(f"document.querySelectorAll('#strips path')[{strip}].getAttribute('d')")
    return [round(1 - float(top), 3) for top in re.findall(r"V([\d.]+)H", path)]


def test_a_strip_shows_which_tokens_are_active(page: Page, record: PromptRecord) -> None:
    for layer in (5, 2, 0):
        choose(page, "layer", layer)
        for strip, policy in enumerate(record.policies):
            gone = [stage >= 0 and policy.stages[stage].layer <= layer for stage in policy.halted]
            assert bars(page, strip) == [float(not each) for each in gone]


def test_a_bar_of_a_long_prompt_is_the_share_of_its_tokens_that_are_active(long: Page) -> None:
    halves, thirds = bars(long, 0), bars(long, 1)
    assert len(halves) == len(thirds) == 1200
    assert sum(halves) / 1200 == pytest.approx(1 / 2, abs=0.01)
    assert sum(thirds) / 1200 == pytest.approx(1 / 3, abs=0.01)


def test_a_click_on_the_overview_goes_there_and_the_mouse_over_it_only_shows_what_is_there(long: Page) -> None:
    long.run("document.querySelector('nav').scrollIntoView()")
    left, top, width, _ = box(long, "#overview")
    before = long.run("scrollY")
    long.move(left + width / 4, top + 8)
    assert here(long) == pytest.approx(COUNT / 4, abs=COUNT / width)
    assert long.run("scrollY") == before
    long.click(left + 3 * width / 4, top + 8)
    assert here(long) == pytest.approx(3 * COUNT / 4, abs=COUNT / width)
    assert is_seen(long, here(long))
    long.drag((left + width / 4, top + 8), (left + width / 2, top + 8))
    assert here(long) == pytest.approx(COUNT / 2, abs=COUNT / width)
    assert is_seen(long, here(long))


def test_the_keyboard_walks_the_overview_and_a_screen_reader_hears_where(long: Page) -> None:
    long.run("byId('overview').focus()")
    walked = []
    for key in ("Home", "ArrowRight", "PageDown", "ArrowLeft", "End", "ArrowRight"):
        long.press(key)
        walked.append(here(long))
    assert walked == [0, 60, 660, 600, COUNT - 1, COUNT - 1]
    assert is_seen(long, COUNT - 1)
    said = [long.run(f"byId('overview').getAttribute('aria-value{name}')") for name in ("now", "max", "text")]
    assert said == ["5999", "5999", 'token 5,999 of 6,000: " mist"']


def test_the_box_on_the_overview_is_what_the_window_shows(long: Page) -> None:
    long.run(f"go({PLACE})")
    long.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    left, _, width, _ = box(long, "#overview")
    begin, _, wide, _ = box(long, "#window")
    assert begin <= left + width * PLACE / COUNT <= begin + wide
    assert wide < width / 10


def test_what_is_found_has_a_strip(long: Page) -> None:
    choose(long, "find", "bell")
    assert long.run("byId('strip-names').lastElementChild.textContent") == "found 1 (under 1 %)"
    assert [at for at, bar in enumerate(bars(long, 2)) if bar] == [PLACE * 1200 // COUNT]
    choose(long, "find", "")
    assert long.run("byId('strips').children.length") == 2


def test_a_strip_s_name_goes_to_the_next_place(page: Page, record: PromptRecord) -> None:
    stays = [stage < 0 for stage in record.policies[1].halted]
    starts = [at for at, kept in enumerate(stays) if kept and at > 0 and not stays[at - 1]]
    for wanted in (*starts, 0, starts[0]):
        page.run("document.querySelectorAll('#strip-names button')[1].click()")
        assert here(page) == wanted


@pytest.mark.parametrize("column", range(len(POLICIES)))
def test_the_picture_of_layers_is_filled_where_a_token_runs(column: int, page: Page, record: PromptRecord) -> None:
    policy = record.policies[column]
    for token in [0, *(policy.halted.index(stage) for stage in set(policy.halted)), len(policy.halted) - 1]:
        stage = policy.halted[token]
        last = record.layers - 1 if stage < 0 else policy.stages[stage].layer
        attention = [layer <= last for layer in range(record.layers)]
        assert runs_in(page, column, token, record.layers) == attention
        if stage >= 0 and policy.stages[stage].boundary == "attention":
            attention[last] = False
        assert runs_in(page, column, token, record.layers, part=0.75) == attention


def test_the_picture_of_layers_says_its_numbers(page: Page, record: PromptRecord) -> None:
    label = page.run("document.querySelectorAll('.layers svg')[1].getAttribute('aria-label')")
    halted, count = record.policies[1].halted, len(record.tokens)
    first, second = (sum(stage < 0 or stage > done for stage in halted) for done in (0, 1))
    assert f"layers 0 to 1: all {count} tokens; " in label
    assert f"layer 2, attention of layer 3: {first} tokens ({100 * first / count:.0f} %); " in label
    assert f"FFN of layer 3, layers 4 to 5: {second} tokens ({100 * second / count:.0f} %)" in label
    assert (
        page.run("document.querySelectorAll('.layers figcaption')[3].innerText") == f"layers 0 to 5: all {count} tokens"
    )


def test_the_picture_of_a_long_prompt_is_paler_where_fewer_of_its_tokens_run(long: Page) -> None:
    def filled(picture: int, level: int, layer: int) -> float:
        path = f"document.querySelectorAll('.layers svg')[{picture}].querySelectorAll('.level-{level}')"
        inside = f"[...{path}].some((e) => e.isPointInFill(new DOMPoint(at + 0.5, {layer + 0.5})))"
        return long.run(f"[...Array(480).keys()].filter((at) => {inside}).length") / 480

    assert [filled(0, level, 1) for level in range(1, 7)] == [1] * 6
    assert [filled(0, level, 2) > 0.9 for level in range(1, 7)] == [True] * 3 + [False] * 3
    assert [filled(1, level, 2) > 0.9 for level in range(1, 7)] == [True] * 2 + [False] * 4


def test_a_click_on_the_picture_of_layers_shows_that_token_after_that_layer(page: Page, record: PromptRecord) -> None:
    page.run("document.querySelector('.frame').scrollIntoView({block: 'center'})")
    left, top, width, height = box(page, ".frame")
    page.click(left + 0.6 * width, top + 2.5 / record.layers * height)
    assert here(page) == int(0.6 * len(record.tokens))
    assert is_seen(page, here(page))
    assert [page.run("byId('layer').value"), page.run("byId('layer-shown').textContent")] == ["2", "2"]
