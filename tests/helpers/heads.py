"""Tiny models without a decode: classifiers of each family, and embedders, with the weights of `tiny`."""

from typing import Any

from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from helpers.tiny import SIZES, VARIANTS, draw_weights

AUTO = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
}


def with_head(head: str, variant: str = "llama", **options: Any) -> Any:
    """A tiny model of a variant with a head of AUTO. options: for its config."""
    own = VARIANTS[variant]
    config = own.config(**{**SIZES, **own.options, "num_labels": 3, **options})
    model = AUTO[head].from_config(config)
    draw_weights(model, 0)
    return model.eval()
