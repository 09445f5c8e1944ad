"""Documents of about a given length, and facts planted in them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from deltahalt.lab.evaluation.shapes import prose, sources
from deltahalt.lab.evaluation.shapes.base import Order
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens

FEWEST_PIECES = 4
KINDS: tuple[Callable[[Draw], Iterator[str]], ...] = (
    prose.report,
    prose.minutes,
    prose.contract,
    sources.help_texts,
    sources.source_code,
)


def pieces(order: Order, tokens: int) -> list[str]:
    """Paragraphs of one kind of text, about `tokens` in all. The kinds take turns with the seeds."""
    draw, kinds = order.draw, list(KINDS)
    if order.folder is not None:
        kinds += [lambda draw: sources.essays(draw, order.folder)] * 3  # type: ignore[arg-type]
    return filled(draw.random.choice(kinds)(draw), tokens)


def filled(texts: Iterator[str], tokens: int) -> list[str]:
    """Pieces from `texts` until they have about `tokens`, and no fewer than `FEWEST_PIECES`."""
    found, size = list[str](), 0
    for piece in texts:
        length = count_tokens(piece) + 1
        if len(found) >= FEWEST_PIECES and size + length > tokens:
            break
        found.append(piece)
        size += length
    return found


def planted(draw: Draw, paragraphs: Sequence[str], sentences: Sequence[str]) -> str:
    """The paragraphs as a text, with each sentence somewhere inside as a paragraph of its own, in a drawn order.

    Places are spread over the text, none is its beginning or end.
    """
    text = list(paragraphs)
    gaps = list(range(1, len(text)))
    places = (
        draw.random.sample(gaps, len(sentences))
        if len(gaps) >= len(sentences)
        else draw.random.choices(gaps, k=len(sentences))
    )
    for place, sentence in sorted(zip(places, sentences, strict=True), reverse=True):
        text.insert(place, sentence)
    return "\n\n".join(text)


def stated(order: Order, tokens: int, *groups: Sequence[str]) -> str:
    """A document of about `tokens` that states all sentences of all groups."""
    sentences = list(chain(*groups))
    own = sum(map(count_tokens, sentences))
    return planted(order.draw, pieces(order, max(0, tokens - own)), sentences)
