"""House rules of a system prompt, one of which can be checked in the answer."""

from collections.abc import Callable
from dataclasses import dataclass

from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.names import code, firm, person, slots
from deltahalt.lab.evaluation.shapes.scorers import holds, plain


@dataclass(frozen=True)
class Rule:
    """text: what the answer must do; obeyed: whether one does; obey: an answer that does, made of one that need not."""

    text: str
    obeyed: Callable[[str], bool]
    obey: Callable[[str], str]


@dataclass(frozen=True)
class Begins:
    """The answer begins with these words."""

    words: str

    def __call__(self, said: str) -> bool:
        return plain(said).startswith(plain(self.words))


@dataclass(frozen=True)
class Ends:
    """The answer has these words in its last line."""

    words: str

    def __call__(self, said: str) -> bool:
        lines = said.strip().splitlines()
        return bool(lines) and holds(lines[-1], self.words)


def shouted(said: str) -> bool:
    """Whether an answer is in capital letters throughout."""
    return said.upper() == said and said.lower() != said


HOUSE = (
    "You work for {firm} and answer questions of its staff.",
    "Staff in {place} may only see what concerns the {thing}.",
    "Do not give advice on {goods} or on prices.",
    "Where a document is unclear, say that it is unclear.",
    "Opening hours of the {thing} are on the notice board, not with you.",
    "Requests about holidays go to {person}.",
    "Never promise a delivery of {goods} before {month}.",
    "If somebody is angry, stay calm and do not argue.",
    "The {adjective} {thing} has been closed since {year}; do not send visitors there.",
    "Complaints are passed on to {other} without comment.",
    "Amounts above {many} crowns need a second signature.",
    "Keep what is said about the {project} inside the company.",
    "Do not mention {firm} to customers from {place}.",
    "The handbook has {few} chapters; quote none of them in full.",
    "Answers may be read aloud, so avoid tables.",
    "Log files are kept for {few} days and then deleted.",
    "In an emergency at the {thing}, the {trade} on duty decides.",
    "Invoices from before {year} are in the archive in {place}.",
)


def make_rule(draw: Draw) -> Rule:
    """A rule that a short answer can obey."""
    word, tag, name = firm(draw).split()[0], code(draw), person(draw)
    return draw.one(
        (
            Rule(f"End every answer with the line: Ref. {tag}", Ends(tag), lambda text: f"{text}\nRef. {tag}"),
            Rule(f"Begin every answer with the word {word}.", Begins(word), lambda text: f"{word}. {text}"),
            Rule("Write every answer in capital letters only.", shouted, str.upper),
            Rule(
                f"Sign every answer on the last line with the name {name}.", Ends(name), lambda text: f"{text}\n{name}"
            ),
            Rule(
                f'Begin every answer with the words "Dear colleague {tag}".',
                Begins(f"Dear colleague {tag}"),
                lambda text: f"Dear colleague {tag}, {text}",
            ),
            Rule(
                f'Close every answer with the words "Noted under {tag}".',
                Ends(f"Noted under {tag}"),
                lambda text: f"{text} Noted under {tag}",
            ),
        )
    )


def house_rules(draw: Draw, rule: str) -> str:
    """A system prompt of five to nine house rules, with `rule` among them."""
    lines = [line.format(**slots(draw)) for line in draw.some(HOUSE, draw.between(5, len(HOUSE) // 2))]
    lines.insert(draw.between(0, len(lines)), rule)
    return "\n".join(lines)
