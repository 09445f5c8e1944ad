"""Where the question stands in a prompt: at given spans, or wherever its text is found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from deltahalt.errors import InputError, UnsupportedError

LEADS = ("", " ", "\n")  # what may stand before a question in the text, since it can change the question's first token
FEWEST = 4  # a text of fewer tokens is looked for whole: an end of it may be part of a longer token


class Question(Protocol):
    """Finds the question in each prompt of a block."""

    def positions(self, ids: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """Positions [q], ascending, of the question in a prompt of `tokens` tokens; `ids` [tokens], if they are known.

        Raises InputError where it is not there.
        """


@dataclass(frozen=True)
class Spans:
    """Spans of tokens (begin, end), without the end; negative numbers count from the end of the prompt."""

    spans: tuple[tuple[int, int], ...]

    def positions(self, ids: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """See `Question.positions`."""
        marked = torch.zeros(tokens, dtype=torch.bool)
        for begin, end in self.spans:
            first, last = (place + tokens if place < 0 else place for place in (begin, end))
            if not 0 <= first < last <= tokens:
                raise InputError(
                    f"the question's span ({begin}, {end}) is not in a prompt of {tokens} tokens: give (begin, end) "
                    "with begin below end; negative numbers count from the prompt's end"
                )
            marked[first:last] = True
        return marked.nonzero().squeeze(1)


@dataclass(frozen=True)
class Words:
    """A question as text. pieces: its token ids, for each of `LEADS` before it."""

    text: str
    pieces: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> "Words":
        """The question of this text. Raises InputError for an empty one, and without a tokenizer."""
        if not text.strip():
            raise InputError("the question is empty: give its text, or leave it out")
        if tokenizer is None:
            raise InputError("a question given as text is found by its tokens: give the model's tokenizer, too")
        texts = [f"{lead}{text.strip()}" for lead in LEADS]
        return cls(text, tuple(tuple(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in texts))

    def positions(self, ids: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """See `Question.positions`. Raises UnsupportedError for a prompt of embeddings."""
        marked = self.found(ids, tokens)
        if not marked.any():
            raise InputError(
                f"the question {self.text!r} is not in the prompt: give it word for word as it stands there, or give "
                "spans of tokens, question=[(begin, end)]"
            )
        return marked.nonzero().squeeze(1)

    def found(self, ids: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """Whether each token of a prompt is in the question: [tokens] bool. Raises UnsupportedError without ids."""
        if ids is None:
            raise UnsupportedError(
                "a question given as text is looked for among token ids, and this model's decoder gets embeddings: "
                "give spans of tokens, question=[(begin, end)]"
            )
        marked = torch.zeros(tokens, dtype=torch.bool)
        for piece in self.pieces:
            inner = piece[1:-1] if len(piece) >= FEWEST else piece
            if len(inner) > tokens:
                continue
            wanted = torch.tensor(inner, device=ids.device)
            spared = (len(piece) - len(inner)) // 2
            for place in (ids.unfold(0, len(inner), 1) == wanted).all(dim=1).nonzero().flatten().tolist():
                marked[max(0, place - spared) : place + len(inner) + spared] = True
        return marked


@dataclass(frozen=True)
class Several:
    """Questions as texts, of which each prompt has one or more: those of a batch, or all those of one prompt."""

    questions: tuple[Words, ...]

    def positions(self, ids: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """See `Question.positions`. Raises UnsupportedError for a prompt of embeddings."""
        found = [one.found(ids, tokens) for one in self.questions]
        marked = torch.stack(found).any(dim=0)
        if not marked.any():
            raise InputError(
                f"none of the {len(found)} questions is in the prompt: give them word for word as they stand there, or "
                "give spans of tokens, question=[(begin, end)]"
            )
        return marked.nonzero().squeeze(1)


def question_of(given: Any, tokenizer: Any = None) -> Question:
    """The Question of a text, several texts or spans. Raises InputError for others, and for text without tokenizer."""
    if isinstance(given, list | tuple) and given and all(isinstance(one, str) for one in given):
        return Several(tuple(Words.of(one, tokenizer) for one in given))
    if isinstance(given, str):
        return Words.of(given, tokenizer)
    spans = list(given) if isinstance(given, Sequence) else []
    if not spans or not all(_is_span(span) for span in spans):
        raise InputError(
            f"question is {given!r}: give its text, a list of texts, or spans of tokens such as [(0, 40), (-20, -4)]"
        )
    return Spans(tuple((begin, end) for begin, end in spans))


def _is_span(span: Any) -> bool:
    numbers = list(span) if isinstance(span, Sequence) and not isinstance(span, str) else []
    return len(numbers) == 2 and all(isinstance(one, int) and not isinstance(one, bool) for one in numbers)
