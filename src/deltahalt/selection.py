"""Which tokens stay active: counting and top-K. Knows one sequence's scores, and no model, batch or cache."""

import torch

from deltahalt.errors import PolicyError


def halted_count(eligible: int, pruning_ratio: float) -> int:
    """Number of `eligible` tokens to halt at `pruning_ratio`, rounded as in DASH App. A (Table 3's caption)."""
    return round(pruning_ratio * max(eligible, 0))


def top_k(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Index of the `count` highest of `scores` [m], ascending. Equal scores go to the earlier token.

    The same scores give the same index on every backend: the sort is stable.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values


def refuse_nan(scores: torch.Tensor, source: str) -> None:
    """Raise PolicyError if `scores` hold a NaN: a NaN would be ranked as the highest score without a word."""
    if torch.isnan(scores).any():
        raise PolicyError(
            f"{source} scored some tokens as NaN. The hidden states hold NaN or overflow: "
            "check the input, or load the model in bfloat16 or float32 in place of float16."
        )
