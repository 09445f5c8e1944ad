"""The choice of tokens that stay active, by their count and scores. It works on one sequence, without a model."""

import torch
import torch.nn.functional as F

from deltahalt.errors import PolicyError


def halted_count(eligible: int, pruning_ratio: float) -> int:
    """Number of `eligible` tokens to halt at `pruning_ratio`, rounded as in DASH, App. A (caption of Table 3)."""
    return round(pruning_ratio * max(eligible, 0))


def top_k(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices, ascending, of the `count` highest of `scores` [m]. Of equal scores, that of the earlier token wins.

    The sort is stable, so the same scores give the same indices on every backend.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values


def evenly(m: int, count: int) -> torch.Tensor:
    """Indices, ascending, of `count` of m tokens at even distances: the middles of `count` equal spans."""
    return (2 * torch.arange(count) + 1) * m // (2 * max(count, 1))


def evenly_in_chunks(m: int, count: int, chunk: int) -> torch.Tensor:
    """Indices, ascending, of `count` of m tokens in contiguous chunks at even distances.

    The last of these chunks is cut where that gives the exact count.
    """
    chunks = -(-m // chunk)
    few = min(chunks, -(-count // chunk))
    chosen = evenly(chunks, few)
    if len(chosen) and chosen[-1] == chunks - 1 and few * chunk - (chunks * chunk - m) < count:  # a short one
        chosen = evenly(chunks, few + 1)
    index = (chosen[:, None] * chunk + torch.arange(chunk)).flatten()
    return index[index < m][:count]


def spread_over_chunks(scores: torch.Tensor, chunk: int) -> torch.Tensor:
    """Replace each of `scores` [m] by the mean of its chunk of `chunk` contiguous tokens; the last may be shorter."""
    if chunk == 1:
        return scores
    means = F.avg_pool1d(scores[None].float(), chunk, ceil_mode=True)[0]
    return means.repeat_interleave(chunk)[: len(scores)]


def drawn(count: int, seed: int) -> torch.Tensor:
    """Draw `count` numbers in [0, 1) on the CPU, from a generator of their own: torch's global one does not change."""
    return torch.rand(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def refuse_nan(scores: torch.Tensor, source: str) -> None:
    """Raise PolicyError if one of `scores` is NaN, which a sort would rank highest."""
    if torch.isnan(scores).any():
        raise PolicyError(nan_message(source))


def nan_message(source: str) -> str:
    """The message of the error that `source` scored a token as NaN."""
    return (
        f"{source} scored some tokens as NaN. The hidden states hold NaN or overflow: "
        "check the input, or load the model in bfloat16 or float32 instead of float16."
    )
