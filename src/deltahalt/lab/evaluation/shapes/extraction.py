"""One value to be taken out of a long JSON document or a long table."""

import json
from collections.abc import Callable

from deltahalt.lab.evaluation.shapes.base import WIDE_ROOM, Made, Order, asked_after
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.names import GOODS, code, date, firm, person, place, words
from deltahalt.lab.evaluation.shapes.scorers import Names

STATES = words("shipped returned pending refused collected damaged lost packed insured invoiced")
Record = dict[str, str]

ORDERS = (  # where the value is in an order, and how it is asked for
    (("due",), "On which day is the order {0} due?"),
    (("customer", "town"), "In which town does the customer of the order {0} live?"),
    (("customer", "name"), "Who is the customer of the order {0}?"),
    (("item", "quantity"), "What quantity was ordered with the order {0}?"),
    (("carrier",), "Which company is the carrier of the order {0}?"),
    (("item", "batch"), "What is the batch of the item in the order {0}?"),
)
COLUMNS = ("Keeper", "Opened", "Visitors", "Code", "Operator")
TABLE = (
    ("Keeper", "Who is the keeper of the station {0}?"),
    ("Opened", "On which date was the station {0} opened?"),
    ("Visitors", "How many visitors does the table have for the station {0}?"),
    ("Code", "Which code does the station {0} have in the table?"),
    ("Operator", "Who is the operator of the station {0}?"),
)


def json_extraction(order: Order) -> Made:
    """A JSON list of orders, and a question about one of them."""
    draw = order.draw
    (path, question), indent = draw.one(ORDERS), draw.random.choice((None, 1))
    orders: list[dict[str, object]] = []
    size, known = 0, set[str]()
    while size < order.tokens - WIDE_ROOM:
        one = _order(draw)
        if str(one["order"]) in known:
            continue
        known.add(str(one["order"]))
        orders.append(one)
        size += count_tokens(json.dumps(one, indent=indent))
    asked = draw.random.choice(orders)
    answer: object = asked
    for key in path:
        assert isinstance(answer, dict)
        answer = answer[key]
    question = question.format(asked["order"])
    listed = json.dumps(orders, indent=indent)
    return _extracted(listed, question, str(answer))


def table_extraction(order: Order) -> Made:
    """A table of stations in Markdown, CSV or aligned text, and a question about one cell."""
    draw = order.draw
    (column, question), write = draw.one(TABLE), draw.one(WAYS)
    rows: dict[str, Record] = {}
    size = 0
    while size < order.tokens - WIDE_ROOM:
        name, row = place(draw), _station(draw)
        size += count_tokens(write({name: row})) - count_tokens(write({})) if name not in rows else 0
        rows.setdefault(name, row)
    asked = draw.random.choice(list(rows))
    return _extracted(write(rows), question.format(asked), rows[asked][column])


def markdown(rows: dict[str, Record]) -> str:
    """The rows as a Markdown table."""
    head = f"| Station | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}"
    return "\n".join([head, *(f"| {name} | {' | '.join(row.values())} |" for name, row in rows.items())])


def csv(rows: dict[str, Record]) -> str:
    """The rows with semicolons between."""
    return "\n".join(
        [f"Station;{';'.join(COLUMNS)}", *(f"{name};{';'.join(row.values())}" for name, row in rows.items())]
    )


def aligned(rows: dict[str, Record]) -> str:
    """The rows in columns of a fixed width."""
    lines = [("Station", *COLUMNS), *((name, *row.values()) for name, row in rows.items())]
    return "\n".join("  ".join(cell.ljust(22) for cell in line).rstrip() for line in lines)


def labelled(rows: dict[str, Record]) -> str:
    """Each cell with the name of its column."""
    return "\n".join(
        f"{name}: " + ", ".join(f"{key}={value}" for key, value in row.items()) for name, row in rows.items()
    )


WAYS: tuple[Callable[[dict[str, Record]], str], ...] = (markdown, csv, aligned, labelled)


def _order(draw: Draw) -> dict[str, object]:
    return {
        "order": draw.number(6),
        "customer": {"name": person(draw), "town": place(draw)},
        "item": {"article": draw.one(GOODS), "quantity": draw.number(4), "batch": code(draw)},
        "status": draw.one(STATES),
        "carrier": firm(draw),
        "due": date(draw),
    }


def _station(draw: Draw) -> Record:
    return dict(zip(COLUMNS, (person(draw), date(draw), draw.number(5), code(draw), firm(draw)), strict=True))


def _extracted(text: str, question: str, answer: str) -> Made:
    return asked_after(text, question, f"{answer}.", Names(answer))
