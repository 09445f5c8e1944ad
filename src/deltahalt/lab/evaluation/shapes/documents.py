"""Documents of about a given length, and facts planted in them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from deltahalt.lab.evaluation.shapes import prose, sources
from deltahalt.lab.evaluation.shapes.base import Order
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens

FEWEST_PIECES = 4
SHORT = 800  # tokens of a text whose pieces may be longer than a quarter
LONGEST_WORD = 100  # characters
KINDS: tuple[Callable[[Draw], Iterator[str]], ...] = (
    prose.report,
    prose.minutes,
    prose.contract,
    sources.help_texts,
    sources.docstrings,
    sources.readmes,
    sources.source_code,
)


def pieces(order: Order, tokens: int) -> list[str]:
    """Paragraphs of one kind of text, about `tokens` in all. The kinds take turns with the seeds."""
    draw, kinds = order.draw, list(KINDS)
    if order.folder is not None:
        kinds += [lambda draw: sources.essays(draw, order.folder)] * 3  # type: ignore[arg-type]
    return filled(draw.random.choice(kinds)(draw), tokens)


def filled(texts: Iterator[str], tokens: int, fewest: int = FEWEST_PIECES) -> list[str]:
    """Pieces from `texts` until they have about `tokens`, and no fewer than `fewest`.

    Pieces longer than a quarter of that are left out, and those with data in place of words.
    """
    found: list[str] = []
    size = 0
    for piece in texts:
        length = count_tokens(piece) + 1
        if length > max(tokens, SHORT) / 4 or any(len(word) > LONGEST_WORD for word in piece.split()):
            continue
        if len(found) >= fewest and size + length > tokens:
            break
        found.append(piece)
        size += length
    return found


def planted(
    draw: Draw, paragraphs: Sequence[str], sentences: Sequence[str], in_order: Sequence[Sequence[str]] = ()
) -> str:
    """The paragraphs as a text, with each sentence somewhere inside as a paragraph of its own, in a drawn order.

    No place is the text's beginning or end. in_order: groups of the sentences that keep their order.
    """
    order = draw.shuffled(sentences)
    for group in in_order:
        for place, sentence in zip(sorted(map(order.index, group)), group, strict=True):
            order[place] = sentence
    gaps = range(1, len(paragraphs))
    places = sorted(draw.random.choices(gaps, k=len(order)))
    if len(gaps) >= len(order):
        places = sorted(draw.random.sample(gaps, len(order)))
    text = list(paragraphs)
    for place, sentence in reversed(list(zip(places, order, strict=True))):
        text.insert(place, sentence)
    return "\n\n".join(text)


def stated(order: Order, tokens: int, *groups: Sequence[str]) -> str:
    """A document of about `tokens` that states all sentences of all groups."""
    sentences = list(chain(*groups))
    own = sum(map(count_tokens, sentences))
    return planted(order.draw, pieces(order, max(0, tokens - own)), sentences)
