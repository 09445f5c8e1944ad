"""Token ids of samples, in the model's own chat format."""

from typing import Any

import torch

from deltahalt.answering.documents import encode_text, encode_turn, format_chat, shared_start
from deltahalt.errors import InputError
from deltahalt.lab.evaluation.samples import Sample
from deltahalt.loading.models import LoadedModel


def sample_ids(loaded: LoadedModel, sample: Sample) -> torch.Tensor:
    """Return the token ids [T] of a sample's prompt, on the CPU. Raises InputError above the model's context."""
    tokenizer, config = loaded.tokenizer, loaded.model.config
    if sample.shaped is None:
        return _row(encode_turn(tokenizer, config, sample.text, sample.lead))
    if not sample.shaped.chat:
        return _row(encode_text(tokenizer, config, sample.prompt, special=True))
    text = format_chat(tokenizer, sample.shaped.messages)
    return _row(encode_text(tokenizer, config, text, special=not tokenizer.chat_template))


def shared_ids(loaded: LoadedModel, sample: Sample, ids: torch.Tensor, *, query_free: bool = False) -> int | None:
    """Return the number of a sample's tokens that are prefilled before its question; None if both run together.

    ids: its token ids, as `sample_ids` returns them. query_free: whether this holds for every sample. If so, a sample
    without a separate question raises InputError.
    """
    shaped = sample.shaped
    if shaped is not None and shaped.hidden:
        text = format_chat(loaded.tokenizer, shaped.messages[: -shaped.hidden], answered=False)
        special = not loaded.tokenizer.chat_template
        before = _row(encode_text(loaded.tokenizer, loaded.model.config, text, special=special))
        return shared_start(ids, before)
    if not query_free:
        return None
    if not sample.question:
        raise InputError(
            f"--query-free needs a separate question, and a {sample.task} sample has none: fill its field `question`, "
            "or leave --query-free out"
        )
    before = _row(encode_turn(loaded.tokenizer, loaded.model.config, sample.prompt))
    return shared_start(ids, before)


def _row(encoded: Any) -> torch.Tensor:
    ids: torch.Tensor = encoded["input_ids"][0]
    return ids
