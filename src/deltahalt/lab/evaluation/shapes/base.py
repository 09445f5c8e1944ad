"""What a prompt of a shape consists of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.scorers import Scorer

ROOM = 60  # tokens left for a question and the chat format
WIDE_ROOM = 80  # the same for the longer requests


class Message(TypedDict):
    """One turn of a chat, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class ShapedPrompt:
    """A prompt, and how what follows it is judged.

    messages: the chat, which the model's own chat template formats; the model answers the last.
    answer: the gold continuation for teacher-forced NLL. scorer: rates a generated answer in [0, 1]; None where
    generation cannot be scored by rule. limit: most tokens to generate. question: the question in `messages`, word
    for word; empty where there is none. hidden: number of last messages that are not known yet when the rest is read.
    chat: False for plain text, which no chat template formats.
    """

    shape: str
    seed: int
    messages: tuple[Message, ...]
    answer: str
    scorer: Scorer | None = None
    limit: int = 64
    question: str = ""
    hidden: int = 0
    chat: bool = True

    @property
    def text(self) -> str:
        """All that the messages say, in order, with blank lines between."""
        return "\n\n".join(message["content"] for message in self.messages)

    @property
    def said(self) -> dict[str, object]:
        """What a measurement depends on, as JSON takes it."""
        return {
            "messages": list(self.messages),
            "answer": self.answer,
            "limit": self.limit,
            "hidden": self.hidden,
            "chat": self.chat,
        }


@dataclass(frozen=True)
class Made:
    """A shape's own part of a `ShapedPrompt`, whose fields these are."""

    messages: tuple[Message, ...]
    answer: str
    scorer: Scorer | None = None
    limit: int = 64
    question: str = ""
    hidden: int = 0
    chat: bool = True


@dataclass(frozen=True)
class Order:
    """What a shape is to make. tokens: about how long the prompt is; folder: the user's texts, if there are any."""

    draw: Draw
    tokens: int
    folder: Path | None = None


Shape = Callable[[Order], Made]


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A model's turn."""
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    """A system prompt."""
    return {"role": "system", "content": content}


def asked_after(text: str, question: str, answer: str, scorer: Scorer | None = None, limit: int = 64) -> Made:
    """One user turn: the text, then the question."""
    return Made((user(f"{text}\n\n{question}"),), answer, scorer, limit=limit, question=question)
