"""Summaries whose main points are known, as the text was made of them; and texts that go on without a question."""

from deltahalt.lab.evaluation.shapes import prose
from deltahalt.lab.evaluation.shapes.base import WIDE_ROOM, Made, Order, asked_after, user
from deltahalt.lab.evaluation.shapes.documents import filled, pieces
from deltahalt.lab.evaluation.shapes.draw import count_tokens
from deltahalt.lab.evaluation.shapes.facts import different
from deltahalt.lab.evaluation.shapes.names import MONTHS
from deltahalt.lab.evaluation.shapes.scorers import NamesAll
from deltahalt.lab.evaluation.shapes.sources import longbench_rows

DECISIONS = (
    "the {0} goes to {1}",
    "{1} repairs the {0} before {2}",
    "the {0} is closed until {2}, and {1} guards it",
    "the {0} is sold to {1}",
    "{1} has to explain the costs of the {0} in {2}",
    "the contract with {1} for the {0} ends in {2}",
    "the {0} is postponed to {2}, and {1} has to be informed",
    "{1} may use the {0} from {2} on",
)
REQUESTS = (
    "Summarize what was decided in this meeting, in a few sentences.",
    "Write a short summary of the decisions in the minutes above.",
    "What did the meeting decide? Sum it up briefly, item by item.",
    "Give me the gist of these minutes: every decision in one sentence.",
)
ITEMS = 5
SHORTEST = 40  # tokens of a continuation
NEWS = "Write a one-page summary of all the news above."


def minutes_summary(order: Order) -> Made:
    """Minutes of a meeting with five items, and a request for what was decided."""
    draw = order.draw
    projects, firms = different(draw, ["project"] * ITEMS), different(draw, ["firm"] * ITEMS)
    decisions = [
        draw.one(DECISIONS).format(project, firm, draw.one(MONTHS))
        for project, firm in zip(projects, firms, strict=True)
    ]
    talk = prose.turns(draw)
    parts = []
    for number, (project, decision) in enumerate(zip(projects, decisions, strict=True), 1):
        said = "\n".join(filled(talk, (order.tokens - WIDE_ROOM) // ITEMS - 40, fewest=1))
        parts += [f"Item {number}: the {project}", said, f"It is decided that {decision}."]
    request = draw.one(REQUESTS)
    answer = "The meeting decided that " + ", that ".join(decisions) + "."
    return asked_after("\n\n".join(parts), request, answer, NamesAll((*projects, *firms)), limit=256)


def news_summary(order: Order) -> Made:
    """News from the user's folder, longbench/multi_news.jsonl, with a summary by hand; minutes where there is none."""
    rows = () if order.folder is None else longbench_rows(order.folder / "longbench" / "multi_news.jsonl")
    sizes = {number: count_tokens(row["context"]) for number, row in enumerate(rows)}
    fitting = [number for number, size in sizes.items() if order.tokens / 2 < size < order.tokens]
    if len(fitting) < 2:
        return minutes_summary(order)
    row = rows[order.draw.one(fitting)]
    return asked_after(row["context"], NEWS, row["answers"][0])


def continuation(order: Order) -> Made:
    """A text that breaks off, as plain text without a question."""
    texts = pieces(order, order.tokens)
    cut = next(at for at in range(len(texts) - 1, 0, -1) if at == 1 or count_tokens("".join(texts[at:])) >= SHORTEST)
    return Made((user("\n\n".join(texts[:cut]) + "\n\n"),), "\n\n".join(texts[cut:]), chat=False)
