"""Questions whose answer no single place has: two facts to be joined, chains of variables, counting."""

import string
from itertools import pairwise

from deltahalt.lab.evaluation.shapes.base import ROOM, Made, Order, asked_after
from deltahalt.lab.evaluation.shapes.documents import pieces, planted, stated
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.facts import different
from deltahalt.lab.evaluation.shapes.names import GOODS
from deltahalt.lab.evaluation.shapes.scorers import Counts, Names

# Two sentences that share {1}, the question about {0}, and the kinds of {0}, {1} and {2}, which is the answer.
LINKED = (
    (
        ("{0} is in charge of the {1}.", "The {1} is run from an office in {2}."),
        "In which town is the office of the project that {0} is in charge of?",
        ("person", "project", "place"),
    ),
    (
        ("{0} belongs to {1}.", "{1} lives in {2}."),
        "In which town does the owner of {0} live?",
        ("firm", "person", "place"),
    ),
    (
        ("The {0} was built by {1}.", "The account of {1} has the number {2}."),
        "What is the account number of the firm that built the {0}?",
        ("project", "firm", "number"),
    ),
    (
        ("{0} has moved to {1}.", "The mayor of {1} is {2}."),
        "Who is the mayor of the town that {0} has moved to?",
        ("person", "place", "person"),
    ),
    (
        ("The ferry to {0} is operated by {1}.", "{1} was bought on {2}."),
        "On which date was the operator of the ferry to {0} bought?",
        ("place", "firm", "date"),
    ),
    (
        ("{0} sold the patent to {1}.", "At {1}, patents are kept in the safe {2}."),
        "In which safe is the patent kept that {0} sold?",
        ("person", "firm", "code"),
    ),
)
PAIRS, CHAINS, NOTES = 3, 3, 8


def two_facts(order: Order) -> Made:
    """A question that takes two sentences, which stand apart, among other pairs of the same kind."""
    draw = order.draw
    sentences, question, kinds = draw.one(LINKED)
    values = different(draw, [kind for kind in kinds for _ in range(PAIRS)])
    linked = list(zip(values[:PAIRS], values[PAIRS : 2 * PAIRS], values[2 * PAIRS :], strict=True))
    facts = [sentence.format(*three) for three in linked for sentence in sentences]
    asked, answer = question.format(*linked[0]), linked[0][2]
    wrong = tuple(three[2] for three in linked[1:])
    return asked_after(stated(order, order.tokens - ROOM, facts), asked, f"{answer}.", Names(answer, wrong), limit=96)


def variable_chain(order: Order) -> Made:
    """The value of a variable that is set from another, which is set from another; beside chains like it."""
    draw = order.draw
    length = draw.between(2, 4)
    names = _variables(draw, CHAINS * length)
    values = different(draw, ["number"] * CHAINS)
    lines: list[list[str]] = []
    for number, value in enumerate(values):
        own = names[number * length : (number + 1) * length]
        lines.append([f"VAR {own[0]} = {value}"])
        lines[-1] += [f"VAR {name} = VAR {before}" for before, name in pairwise(own)]
    question = f"Follow the assignments in the text above. What number is the value of VAR {names[length - 1]}?"
    statements = [line for chain in lines for line in chain]
    texts = pieces(order, order.tokens - ROOM - count_tokens("\n".join(statements)))
    text, scorer = planted(draw, texts, statements, in_order=lines), Names(values[0], tuple(values[1:]))
    return asked_after(text, question, f"{values[0]}.", scorer, limit=160)


def counting(order: Order) -> Made:
    """How often something stands in the text."""
    draw = order.draw
    wanted = draw.between(2, 6)
    towns = different(draw, ["place"] * 3)
    ordered = [towns[0]] * wanted + [draw.random.choice(towns[1:]) for _ in range(NOTES - wanted // 2)]
    notes = different(draw, ["number"] * len(ordered))
    facts = [f"Delivery note {note}: {draw.one(GOODS)} for {town}." for note, town in zip(notes, ordered, strict=True)]
    question = f"How many delivery notes in the text above are for {towns[0]}?"
    return asked_after(stated(order, order.tokens - ROOM, facts), question, f"{wanted}.", Counts(wanted))


def _variables(draw: Draw, count: int) -> list[str]:
    """`count` names of five letters, which begin with letters of this seed's half."""
    letters, names = draw.own(string.ascii_uppercase), set[str]()
    while len(names) < count:
        names.add(draw.random.choice(letters) + "".join(draw.random.choices(string.ascii_uppercase, k=4)))
    return draw.shuffled(sorted(names))
