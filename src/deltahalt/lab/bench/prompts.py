"""The prompts of the bench: random tokens, or a text that is tokenized in every run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deltahalt.answering.documents import to_device
from deltahalt.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """`batch` prompts of `length` tokens.

    read: returns the model's inputs, input_ids and attention_mask [B, T]. is_text: whether `read` tokenizes a text; if
    so, its time is part of a run.
    """

    length: int
    batch: int
    is_text: bool
    read: Callable[[], dict[str, torch.Tensor]]


def random_prompts(model: Any, length: int, batch: int, seed: int) -> Prompts:
    """Return prompts of random tokens. Equal seeds give equal prompts."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_decoder().config.vocab_size
    ids = torch.randint(0, vocabulary, (batch, length), generator=generator).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Prompts(length, batch, is_text=False, read=lambda: inputs)


def text_prompts(model: Any, tokenizer: Any, text: str, length: int, batch: int) -> Prompts:
    """Return `batch` copies of the first `length` tokens of `text`, which is repeated if it is too short.

    A prompt may be a few tokens shorter, since the end of a cut text can be tokenized differently. Raises InputError
    for a text without tokens.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError("the text has no tokens: give a text with some words")
    beginning = tokenizer.decode((ids * (length // len(ids) + 1))[:length])

    def read() -> dict[str, torch.Tensor]:
        encoded = tokenizer([beginning] * batch, truncation=True, max_length=length, return_tensors="pt")
        return to_device(encoded, model.device)

    return Prompts(read()["input_ids"].shape[1], batch, is_text=True, read=read)
