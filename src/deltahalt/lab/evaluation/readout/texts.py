"""The texts that a model reads for an embedding, or for a score of relevance to a query."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deltahalt.answering.documents import require_room, require_unicode
from deltahalt.errors import InputError
from deltahalt.files import is_folder
from deltahalt.lab.evaluation.shapes.base import Order
from deltahalt.lab.evaluation.shapes.documents import stated
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.facts import make_fact
from deltahalt.lab.evaluation.shapes.registry import FEWEST_TOKENS
from deltahalt.lab.evaluation.shapes.sources import folder_texts
from deltahalt.loading.models import LoadedModel

ENDING = '\n\nThe text above means in one word: "'  # PromptEOL (arXiv 2307.16645), for models trained to generate
FEWEST = 3  # documents: with fewer there is no order of neighbours
LONGER = 1.4  # by how much a text is made longer than it is cut to, since its tokens are estimated
SURE = 0.7  # share of the tokens that are surely before the cut


@dataclass(frozen=True)
class Document:
    """A document, and a question that it answers before it is cut; empty where none is known."""

    text: str
    question: str = ""


@dataclass(frozen=True)
class Text:
    """What a model reads: the first tokens of a document, then an ending.

    query: what the document is judged for, with the answer yes or no; empty where the model embeds the document.
    """

    document: str
    ending: str
    query: str = ""

    @property
    def digest(self) -> str:
        """The digest by which rows name a text."""
        return _digest([self.document, self.ending, self.query])

    @property
    def document_digest(self) -> str:
        """The digest of the document alone, by which texts of several queries are set side by side."""
        return _digest([self.document])

    def ids(self, loaded: LoadedModel, tokens: int) -> tuple[torch.Tensor, int]:
        """Token ids [1, T] on the model's device, T at most `tokens`, and how many of them the ending has.

        Raises InputError where `tokens` leave no room for the document, or are more than the model takes.
        """
        require_unicode(self.document, "a document")
        tokenizer = loaded.tokenizer
        ending = tokenizer(self.ending, add_special_tokens=False)["input_ids"] if self.ending else []
        room = tokens - len(ending)
        if room < 1:
            raise InputError(f"--tokens is {tokens} and the ending alone has {len(ending)} tokens: give more")
        require_room(tokens, 0, loaded.model.config, "give fewer --tokens")
        document = tokenizer(self.document, truncation=True, max_length=room)["input_ids"]
        return torch.tensor([[*document, *ending]], device=loaded.model.device), len(ending)


def make_documents(count: int, tokens: int, folder: Path | None = None) -> list[Document]:
    """Return `count` documents of about `tokens` tokens; the same arguments give the same ones.

    folder: the user's texts, in alphabetical order; without it, documents are generated and taken from Python and its
    packages, and each states a fact somewhere. Raises InputError for a folder with fewer texts.
    """
    if folder is not None:
        if not is_folder(folder):
            raise InputError(f"{str(folder)[:80]!r} is not a folder: give one with texts, or leave --data out")
        texts = folder_texts(folder)
        if len(texts) < count:
            raise InputError(
                f"--documents is {count} and {folder} has {len(texts)} texts: ask for {len(texts)} or fewer"
            )
        return [Document(text) for text in texts[:count]]
    if tokens < FEWEST_TOKENS:
        raise InputError(f"--tokens is {tokens}, too few for a generated document: give {FEWEST_TOKENS} or more")
    return [_made(seed, tokens) for seed in range(count)]


def to_embed(documents: Sequence[Document], ending: str = ENDING) -> list[Text]:
    """Return the texts from whose last token a model's embeddings are taken."""
    return [Text(document.text, ending) for document in documents]


def to_rank(documents: Sequence[Document], queries: int) -> list[Text]:
    """Return the pairs of each document and each of `queries` questions that one of the documents answers.

    Raises InputError where documents have fewer questions.
    """
    asked = [document.question for document in documents if document.question][:queries]
    if len(asked) < queries:
        raise InputError(
            f"--queries is {queries}, and {len(asked)} of the {len(documents)} documents come with a question: ask for "
            "fewer, give more --documents, and leave --data out"
        )
    return [
        Text(document.text, f"\n\nQuestion: {query}\nDoes the text above answer it, yes or no? Answer:", query)
        for query in asked
        for document in documents
    ]


def _made(seed: int, tokens: int) -> Document:
    draw = Draw("embed", seed)
    fact = make_fact(draw)
    text = stated(Order(draw, tokens), round(LONGER * tokens), (fact.sentence,))
    is_read = count_tokens(text.partition(fact.sentence)[0]) < SURE * tokens
    return Document(text, fact.question if is_read else "")


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
