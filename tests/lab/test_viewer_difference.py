"""The difference of two policies on the page, in a real browser."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deltahalt.lab.viewer.record import PromptRecord
from helpers.browser import Page
from helpers.viewing import POLICIES, choose, contrast, here, long_record, luminance, said, shown, spans

NAMES = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}
COLUMN = len(POLICIES)  # after those of the policies


@pytest.fixture
def page(browser: Page, record: PromptRecord, tmp_path: Path) -> Iterator[Page]:
    yield from shown(browser, record, tmp_path)


def wanted(record: PromptRecord, pair: tuple[int, int], layer: int) -> list[str]:
    first, second = (
        [stage < 0 or own.stages[stage].layer > layer for stage in own.halted]
        for own in (record.policies[one] for one in pair)
    )
    return [NAMES[fate] for fate in zip(first, second, strict=True)]


@pytest.mark.parametrize(("pair", "layer"), [((0, 1), 5), ((0, 1), 2), ((1, 2), 5), ((2, 3), 5), ((0, 3), -1)])
def test_each_token_is_kept_by_both_by_one_or_by_neither_and_all_are_counted(
    pair: tuple[int, int], layer: int, page: Page, record: PromptRecord
) -> None:
    choose(page, "layer", layer)
    choose(page, "pair", f"{pair[0]} {pair[1]}", "change")
    fates = wanted(record, pair, layer)
    assert spans(page, COLUMN, "e.className.match(/both|first|second|neither/)[0]") == fates
    assert spans(page, COLUMN, "e.textContent") == record.tokens
    labels = page.run("[...byId('strip-names').children].map((e) => e.textContent)")
    names, counts = ["both", *(f"only {'ABCD'[one]}" for one in pair), "neither"], Counter(fates)
    assert [label.partition(" (")[0] for label in labels] == [
        f"{name} {counts[fate]}" for name, fate in zip(names, NAMES.values(), strict=True)
    ]


def test_every_two_policies_can_be_chosen(page: Page) -> None:
    options = page.run("[...byId('pair').options].map((e) => e.textContent)")
    assert options == ["each by itself", "A with B", "A with C", "A with D", "B with C", "B with D", "C with D"]


def test_one_policy_has_no_difference(browser: Page, record: PromptRecord, tmp_path: Path) -> None:
    for page in shown(browser, replace(record, policies=record.policies[:1]), tmp_path):
        assert page.run("byId('pair').getClientRects().length") == 0


def test_the_difference_takes_the_place_of_the_columns_until_it_is_left(page: Page) -> None:
    def seen() -> list[bool]:
        return page.run("[...document.querySelectorAll('.row')[0].children].map((e) => e.getClientRects().length > 0)")

    assert seen() == [True] * 4
    choose(page, "pair", "0 1", "change")
    assert seen() == [False] * 4 + [True]
    assert page.run("byId('shade').disabled")
    said(page, 0, 12)
    assert spans(page, COLUMN, "e.classList.contains('here')").index(True) == 12
    choose(page, "pair", "", "change")
    assert seen() == [True] * 4 + [False]
    assert spans(page, 0, "e.classList.contains('here')").index(True) == 12
    assert not page.run("byId('shade').disabled")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_fates_can_be_told_apart_and_read_without_colours(scheme: str, page: Page) -> None:
    page.scheme(scheme)
    choose(page, "pair", "0 1", "change")
    style = "(({textDecorationLine: line, textDecorationStyle: how}) => line + ' ' + how)"
    lines = [page.run(f"{style}(getComputedStyle(document.querySelector('.cell .{name}')))") for name in NAMES.values()]
    assert lines == ["none solid", "underline solid", "underline dotted", "none solid"]
    grounds = [
        page.run(f"getComputedStyle(document.querySelector('.cell .{name}')).backgroundColor")
        for name in NAMES.values()
    ]
    assert grounds[3] == "rgba(0, 0, 0, 0)"
    assert len(set(grounds)) == 4
    for name, ground in zip(("both", "first", "second"), grounds, strict=False):
        ink = page.run(f"getComputedStyle(document.querySelector('.cell .{name}')).color")
        assert contrast(luminance(ink), luminance(ground)) >= 4.5


def test_a_fate_s_name_goes_to_the_next_place_of_it(page: Page, record: PromptRecord) -> None:
    choose(page, "pair", "0 1", "change")
    fates = wanted(record, (0, 1), 5)
    starts = [at for at, fate in enumerate(fates) if fate == "second" and fates[at - 1] != "second"]
    assert len(starts) > 1
    for start in starts:
        page.run("document.querySelectorAll('#strip-names button')[2].click()")
        assert here(page) == start


@pytest.mark.parametrize(("show", "hidden"), [("kept", {"neither"}), ("halted", {"both", "first", "second"})])
def test_tokens_that_one_policy_keeps_are_among_the_active_ones(
    show: str, hidden: set[str], page: Page, record: PromptRecord
) -> None:
    choose(page, "pair", "0 1", "change")
    choose(page, "show", show, "change")
    visible = spans(page, COLUMN, "e.getClientRects().length > 0 && getComputedStyle(e).fontSize !== '0px'")
    assert visible == [fate not in hidden for fate in wanted(record, (0, 1), 5)]


def test_a_long_prompt_has_a_difference(browser: Page, tmp_path: Path) -> None:
    for page in shown(browser, long_record(16_384, 12_000), tmp_path):
        choose(page, "pair", "0 1", "change")
        page.run("go(12_000)")
        labels = page.run("[...byId('strip-names').children].map((e) => e.textContent)")
        assert labels == ["both 2,731 (17 %)", "only A 5,461 (33 %)", "only B 2,731 (17 %)", "neither 5,461 (33 %)"]
