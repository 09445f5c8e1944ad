"""Where a question stands: one fact in one document, asked for in many places of a prompt."""

from deltahalt.lab.evaluation.shapes.base import ROOM, Made, Order, asked_after, assistant, system, user
from deltahalt.lab.evaluation.shapes.documents import stated
from deltahalt.lab.evaluation.shapes.draw import count_tokens
from deltahalt.lab.evaluation.shapes.facts import Fact, make_fact, make_facts
from deltahalt.lab.evaluation.shapes.rules import house_rules, make_rule
from deltahalt.lab.evaluation.shapes.scorers import Both, NamesAll
from deltahalt.lab.evaluation.shapes.tails import STEPS, STYLES

INTRODUCTIONS = (
    "Here is a text.",
    "Please read the following document.",
    "Below you find some material.",
    "Use this text to answer.",
    "The document:",
    "This is what we have on file.",
)
RECEIVED = (
    "Thank you, I have read it. What would you like to know?",
    "I have read the text.",
    "Understood. Go ahead with your question.",
    "Done. What can I do for you?",
)


def question_last(order: Order) -> Made:
    """The document, then the question."""
    fact, document = _found(order)
    return asked_after(document, fact.question, fact.full, fact.scorer)


def question_first(order: Order) -> Made:
    """The question, then the document, and nothing after it."""
    fact, document = _found(order)
    return _asked(f"{fact.question} The answer is in this text:\n\n{document}", fact)


def question_both(order: Order) -> Made:
    """The question before and after the document."""
    fact, document = _found(order)
    return _asked(f"{fact.question}\n\n{document}\n\n{fact.question}", fact)


def question_between(order: Order) -> Made:
    """The question between two documents, one of which has the answer."""
    fact, document = _found(order, 2)
    other = stated(order, order.tokens // 2, ())
    first, second = order.draw.shuffled((document, other))
    text = f"First text:\n\n{first}\n\nMy question: {fact.question} Use both texts.\n\nSecond text:\n\n{second}"
    return _asked(text, fact)


def question_next_turn(order: Order) -> Made:
    """The document alone; the question comes in the next turn, when the document has been read."""
    fact, document = _found(order)
    introduction, received = order.draw.one(INTRODUCTIONS), order.draw.one(RECEIVED)
    turns = (user(f"{introduction}\n\n{document}"), assistant(received), user(fact.question))
    return Made(turns, fact.full, fact.scorer, question=fact.question, hidden=2)


def third_turn(order: Order) -> Made:
    """The document in the first turn, another question in the second, the one that counts in the third."""
    draw = order.draw
    fact, early = make_facts(draw, 2, decoys=1)
    sentences = [fact.sentence, *fact.decoys, early.sentence, *early.decoys]
    document = stated(order, order.tokens - 3 * ROOM, sentences)
    turns = (
        user(f"{draw.one(INTRODUCTIONS)}\n\n{document}"),
        assistant(draw.one(RECEIVED)),
        user(early.question),
        assistant(early.full),
        user(f"Thank you. {fact.question}"),
    )
    return Made(turns, fact.full, fact.scorer, question=fact.question)


def style_after(order: Order) -> Made:
    """The question, then 45 words and more on how to answer."""
    fact, document = _found(order)
    return _asked(f"{document}\n\n{fact.question}\n\n{order.draw.one(STYLES)}", fact, limit=128)


def step_by_step(order: Order) -> Made:
    """The question, then a request to think step by step."""
    fact, document = _found(order)
    return _asked(f"{document}\n\n{fact.question}\n{order.draw.one(STEPS)}", fact, limit=256)


def several_questions(order: Order) -> Made:
    """Three questions at once."""
    facts = make_facts(order.draw, 3, decoys=1)
    document = stated(order, order.tokens - 3 * ROOM, [s for fact in facts for s in (fact.sentence, *fact.decoys)])
    questions = "\n".join(f"{number}. {fact.question}" for number, fact in enumerate(facts, 1))
    answers = "\n".join(f"{number}. {fact.full}" for number, fact in enumerate(facts, 1))
    text = f"{document}\n\nPlease answer these questions:\n{questions}"
    return Made((user(text),), answers, NamesAll(tuple(fact.answer for fact in facts)), limit=160, question=questions)


def system_rule(order: Order) -> Made:
    """A system prompt of house rules, one of which the answer has to obey."""
    fact, rule = make_fact(order.draw), make_rule(order.draw)
    rules = house_rules(order.draw, rule.text)
    document = stated(order, order.tokens - ROOM - count_tokens(rules), (fact.sentence, *fact.decoys))
    turns = (system(rules), user(f"{document}\n\n{fact.question}"))
    return Made(turns, rule.obey(fact.full), Both(fact.scorer, rule.obeyed), limit=96, question=fact.question)


def _found(order: Order, documents: int = 1) -> tuple[Fact, str]:
    """A fact, and a document that states it."""
    fact = make_fact(order.draw)
    return fact, stated(order, order.tokens // documents - ROOM, (fact.sentence, *fact.decoys))


def _asked(text: str, fact: Fact, limit: int = 64) -> Made:
    return Made((user(text),), fact.full, fact.scorer, limit=limit, question=fact.question)
