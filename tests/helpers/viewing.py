"""What is shown on the pages of Fig. 8, and what tests read off them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltahalt.lab.viewer.page import render
from deltahalt.lab.viewer.record import PolicyRecord, PromptRecord, StageRecord
from helpers.browser import Page

SMALL = Path(__file__).parents[2] / "assets/small-vlm"
DOCUMENT = "The tide is in.\nThe </script><b>bell</b> &amp; the caf\u00e9 \U0001f600 rang. <!-- " + "In the mist. " * 8
QUESTION = "When is the tide in, </script>?"
DASH = "dash:start=1,pruning_ratio=0.5,keep_first=4,keep_last=8"
STAGES = (
    "key-norm:start=1,pruning_ratio=0.3,keep_first=6,keep_last=8,chunk=4"
    "+dash:start=3,pruning_ratio=0.6,keep_first=2,keep_last=8,boundary=attention"
)
PRUNED = "dash:start=4,scope=visual,pruning_ratio=0.75"
SEEN = [PRUNED, f"vision-dash:start=2,retain=0.35/{PRUNED}", "vision-dash:start=2,retain=0.5"]
GRIDS = [(8, 6), (4, 10)]  # lines and columns of visual tokens
POLICIES = [DASH, STAGES, "uniform:start=2,pruning_ratio=0.25,keep_first=4,keep_last=8", "dense"]


def shown(browser: Page, record: PromptRecord, folder: Path) -> Iterator[Page]:
    """The record's page in the browser; no script may complain, and nothing may be loaded."""
    (folder / "page.html").write_text(render(record), encoding="utf-8")
    browser.open(folder / "page.html")
    yield browser
    assert browser.errors == []


def long_record(count: int, place: int) -> PromptRecord:
    """A prompt with " bell" at `place`, and two policies: one keeps every second token, the other every third."""
    tokens = [" mist"] * count
    tokens[place] = " bell"
    scores = [float(at % 97) for at in range(count)]
    stage = StageRecord(1, "block", [(0, count)], [(4, count - 8)], scores, None, 48.0)
    halted = [[0 if at % each else -1 for at in range(count)] for each in (2, 3)]
    policies = [PolicyRecord("dash", 1.7, own, [stage], None) for own in halted]
    return PromptRecord("tiny", 4, QUESTION, tokens, policies, [], None)


def spans(page: Page, column: int, value: str) -> list[Any]:
    """A JavaScript expression of each token's element `e`, in one column."""
    cells = f"[...document.querySelectorAll('.cell:nth-child({column + 1}) span')]"
    return list(page.run(f"{cells}.map((e) => {value})"))


def choose(page: Page, control: str, value: object, event: str = "input") -> None:
    page.run(f"{{const c = byId('{control}'); c.value = '{value}'; c.dispatchEvent(new Event('{event}'))}}")


def fates(page: Page, column: int) -> list[str]:
    return spans(page, column, "e.classList.contains('halted') ? e.className.match(/stage-./)[0] : 'kept'")


def said(page: Page, column: int, token: int) -> str:
    """What the page says of a token under one policy."""
    page.run(f"point({token})")
    return str(page.run(f"document.querySelectorAll('#details .columns > div')[{column}].innerText"))


def said_of_each(page: Page, column: int, tokens: list[int]) -> list[str]:
    """What `said` gives for each of several tokens."""
    text = f"document.querySelectorAll('#details .columns > div')[{column}].innerText"
    return list(page.run(f"{tokens}.map((token) => (point(token), {text}))"))


def here(page: Page) -> int:
    place = re.search(r"token ([\d,]+) of", page.run("document.getElementById('details').innerText"))
    return int(place[1].replace(",", ""))


def runs_in(page: Page, column: int, token: int, layers: int, part: float = 0.25) -> list[bool]:
    """In which layers a policy's picture of layers is filled at a token. part: how deep in each layer, from 0 to 1.

    For a prompt so short that the picture has a place for each token.
    """
    fills = f"[...document.querySelectorAll('.layers svg')[{column}].querySelectorAll('.level-6')]"
    inside = f"(y) => {fills}.some((e) => e.isPointInFill(new DOMPoint({token + 0.5}, y + {part})))"
    return list(page.run(f"[...Array({layers}).keys()].map({inside})"))


def box(page: Page, selector: str) -> list[float]:
    """Left, top, width and height of an element in the window."""
    found = f"document.querySelector({selector!r}).getBoundingClientRect()"
    return list(page.run(f"(({{x, y, width, height}}) => [x, y, width, height])({found})"))


def is_seen(page: Page, token: int) -> bool:
    """Whether a token of the first column lies between the controls and the details."""
    rect = f"columns()[0].cells[{token}].getBoundingClientRect()"
    above = "document.querySelector('nav').getBoundingClientRect().bottom"
    below = "byId('details').getBoundingClientRect().top"
    return bool(page.run(f"{rect}.height > 0 && {rect}.top >= {above} && {rect}.bottom <= {below}"))


def contrast(one: float, other: float) -> float:
    """Contrast ratio (WCAG) of two luminances."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG) of a CSS colour such as rgb(1, 2, 3)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
