"""What a model's head reads of the decoder's final states: those of the last tokens, of one token, or of all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from deltahalt.errors import InputError, UnsupportedError

Module = Any


@dataclass(frozen=True)
class Wanted:
    """What the head reads in a call. columns: the number of last columns; 0 for all.

    advice: what to do where the head reads a halted token. `{tail}` in it stands for the number of last tokens that
    never halt.
    """

    columns: int
    advice: str


def head_of(model: Module) -> Callable[[Mapping[str, Any]], Wanted]:
    """Return a function from the arguments of a call, by name, to what the head of the model reads in it.

    Raises UnsupportedError for a head that reads every token.
    """
    if isinstance(model, GenericForTokenClassification | GenericForQuestionAnswering):
        raise UnsupportedError(
            f"{type(model).__name__} reads the final state of every token, and halted tokens have none: use a model "
            "that reads the last token, such as AutoModelForSequenceClassification, or run this one without halting"
        )
    return partial(_pooled, model) if isinstance(model, GenericForSequenceClassification) else _logits


def _logits(given: Mapping[str, Any]) -> Wanted:
    """Return what a language model reads: the tokens that it makes logits of."""
    wanted = given.get("logits_to_keep", 0)
    return Wanted(
        wanted if isinstance(wanted, int) else 0,
        "halted tokens have no logits: pass logits_to_keep=1 (up to {tail}) to a prefill, as generate does",
    )


def _pooled(model: Module, given: Mapping[str, Any]) -> Wanted:
    """Return what a classifier reads: the column that it pools, in the row where that is farthest from the end."""
    return Wanted(
        _until_pooled(model.config.get_text_config().pad_token_id, given),
        f"{type(model).__name__} reads the last token that is not pad_token_id, which may have halted: only the last "
        "{tail} tokens never do. End each text with another token, or raise the policy's keep_last",
    )


def _until_pooled(pad: int | None, given: Mapping[str, Any]) -> int:
    """Return the number of last columns from the one that a classifier pools, in the row where it is farthest back.

    The host pools the last column whose id is not `pad`, whatever attention_mask says; the first one where none is;
    and the last one where it knows no ids. Raises InputError for a row in which only padding could be pooled.
    """
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if pad is None or not isinstance(ids, torch.Tensor) or ids.ndim != 2 or not ids.numel():
        return 1
    known = ids != pad
    pooled = (torch.arange(ids.shape[1], device=ids.device) * known).argmax(dim=1)
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        real = mask.to(ids.device).bool()
        empty = ~(known & real).any(dim=1) & ~real.gather(1, pooled[:, None]).squeeze(1)
        if empty.any():
            raise InputError(
                f"row {int(empty.nonzero()[0])} of the batch has no token but pad_token_id={pad}, so the classifier "
                "would read padding: give each row another token"
            )
    return ids.shape[1] - int(pooled.min())
