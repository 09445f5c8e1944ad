"""Samples to token ids, in the model's own chat format."""

from typing import Any

import torch

from deltahalt.answering.documents import encode_text, encode_turn, format_chat, shared_start
from deltahalt.errors import InputError
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.loading.models import LoadedModel


def sample_ids(loaded: LoadedModel, sample: Sample) -> torch.Tensor:
    """Token ids [T] of a sample's prompt, on the CPU. Raises InputError for one that is longer than the model takes."""
    tokenizer, config = loaded.tokenizer, loaded.model.config
    if sample.shaped is None:
        return _row(encode_turn(tokenizer, config, sample.text, sample.lead))
    if not sample.shaped.chat:
        return _row(encode_text(tokenizer, config, sample.prompt, special=True))
    text = format_chat(tokenizer, sample.shaped.messages)
    return _row(encode_text(tokenizer, config, text, special=not tokenizer.chat_template))


def shared_ids(loaded: LoadedModel, sample: Sample, *, query_free: bool = False) -> int | None:
    """How many of a sample's tokens are read before its question is known; None where both are read together.

    query_free: the question is not known in any sample. Raises InputError for a sample without a question of its own.
    """
    shaped = sample.shaped
    if shaped is not None and shaped.hidden:
        text = format_chat(loaded.tokenizer, shaped.messages[: -shaped.hidden], answered=False)
        special = not loaded.tokenizer.chat_template
        before = _row(encode_text(loaded.tokenizer, loaded.model.config, text, special=special))
        return shared_start(sample_ids(loaded, sample), before)
    if not query_free:
        return None
    if not sample.question:
        raise InputError(f"a {sample.task} sample has no question: query-free needs it apart from the prompt")
    before = _row(encode_turn(loaded.tokenizer, loaded.model.config, sample.prompt))
    return shared_start(sample_ids(loaded, sample), before)


def _row(encoded: Any) -> torch.Tensor:
    ids: torch.Tensor = encoded["input_ids"][0]
    return ids
