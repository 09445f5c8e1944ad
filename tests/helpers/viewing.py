"""What is shown on the pages of Fig. 8, and what tests read off them."""

import re
from pathlib import Path
from typing import Any

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


def here(page: Page) -> int:
    return int(re.search(r"token (\d+) of", page.run("document.getElementById('details').innerText"))[1])
