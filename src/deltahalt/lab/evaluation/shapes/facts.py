"""Facts that a text can state once: a sentence, its question, and its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.names import COLOURS, GOODS, code, date, firm, person, place, project
from deltahalt.lab.evaluation.shapes.scorers import Names


@dataclass(frozen=True)
class Fact:
    """sentence: states it; question: asks for it; answer: the word or number; full: the answer as a sentence.

    decoys: sentences like it about others. wrong: what these say, which are wrong answers.
    """

    sentence: str
    question: str
    answer: str
    full: str
    decoys: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def scorer(self) -> Names:
        """Accepts the answer, unless what a decoy says stands beside it."""
        return Names(self.answer, self.wrong)


# Who it is about, what is said of it, how it is asked for.
KINDS = (
    ("person", "number", "The locker of {0} has the number {1}.", "Which number does the locker of {0} have?"),
    ("place", "code", "The gate in {0} opens with the code {1}.", "Which code opens the gate in {0}?"),
    ("firm", "date", "{0} signed its lease on {1}.", "On which date did {0} sign its lease?"),
    ("project", "number", "The budget of the {0} is {1} crowns.", "How many crowns is the budget of the {0}?"),
    ("person", "place", "{0} was born in the town of {1}.", "In which town was {0} born?"),
    ("firm", "goods", "{0} exports mainly {1}.", "What does {0} mainly export?"),
    ("place", "number", "The census counted {1} residents in {0}.", "How many residents did the census count in {0}?"),
    ("project", "person", "The chief engineer of the {0} is {1}.", "Who is the chief engineer of the {0}?"),
    ("firm", "code", "The spare part ordered by {0} is listed as {1}.", "How is the spare part ordered by {0} listed?"),
    ("place", "colour", "Every shutter in {0} is painted {1}.", "Which colour is every shutter in {0} painted?"),
    ("person", "date", "{0} retired from the service on {1}.", "On which date did {0} retire from the service?"),
    (
        "project",
        "code",
        "The drawings of the {0} are filed under {1}.",
        "What are the drawings of the {0} filed under?",
    ),
    ("firm", "person", "{0} was founded by {1}.", "Who founded {0}?"),
    ("place", "date", "The new bridge in {0} was opened on {1}.", "On which date was the new bridge in {0} opened?"),
    ("person", "goods", "{0} made a fortune by trading {1}.", "By trading what did {0} make a fortune?"),
    (
        "project",
        "number",
        "The sensor in the {0} reports {1} hertz.",
        "How many hertz does the sensor in the {0} report?",
    ),
    ("firm", "place", "{0} has its main warehouse in {1}.", "Where does {0} have its main warehouse?"),
    ("person", "code", "The passport of {0} begins with {1}.", "What does the passport of {0} begin with?"),
)
MAKERS: dict[str, Callable[[Draw], str]] = {
    "person": person,
    "place": place,
    "firm": firm,
    "project": project,
    "number": lambda draw: draw.number(5),
    "code": code,
    "date": date,
    "goods": lambda draw: draw.one(GOODS),
    "colour": lambda draw: draw.one(COLOURS),
}


def make_fact(draw: Draw, decoys: int = 2) -> Fact:
    """A fact, and as many others like it about others."""
    return make_facts(draw, 1, decoys)[0]


def make_facts(draw: Draw, count: int, decoys: int = 0) -> list[Fact]:
    """`count` facts of different kinds; each has `decoys` decoys."""
    return [_fact(draw, *kind, decoys=decoys) for kind in draw.some(KINDS, count)]


def different(draw: Draw, kinds: Sequence[str]) -> list[str]:
    """A name or value for each of `kinds`, none of which is a part of another."""
    found: list[str] = []
    for kind in kinds:
        one = MAKERS[kind](draw)
        while any(one in other or other in one for other in found):
            one = MAKERS[kind](draw)
        found.append(one)
    return found


def _fact(draw: Draw, about: str, said: str, sentence: str, question: str, *, decoys: int) -> Fact:
    values = different(draw, [about] * (decoys + 1) + [said] * (decoys + 1))
    subjects, values = values[: decoys + 1], values[decoys + 1 :]
    sentences = [sentence.format(*pair) for pair in zip(subjects, values, strict=True)]
    return Fact(
        sentence=sentences[0],
        question=question.format(subjects[0]),
        answer=values[0],
        full=sentences[0],
        decoys=tuple(sentences[1:]),
        wrong=tuple(values[1:]),
    )
