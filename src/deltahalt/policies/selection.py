"""Which tokens stay active: counting and top-K. Knows one sequence's scores, and no model, batch or cache."""

import torch
import torch.nn.functional as F

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


def evenly(m: int, count: int) -> torch.Tensor:
    """Index of `count` of m tokens at even distances, ascending: the middles of `count` equal spans."""
    return (2 * torch.arange(count) + 1) * m // (2 * max(count, 1))


def evenly_in_chunks(m: int, count: int, chunk: int) -> torch.Tensor:
    """Index of `count` of m tokens in contiguous chunks at even distances, ascending.

    The last chunk that stays is cut where the exact count falls.
    """
    chunks = -(-m // chunk)
    few = min(chunks, -(-count // chunk))
    chosen = evenly(chunks, few)
    if len(chosen) and chosen[-1] == chunks - 1 and few * chunk - (chunks * chunk - m) < count:  # it is a short one
        chosen = evenly(chunks, few + 1)
    index = (chosen[:, None] * chunk + torch.arange(chunk)).flatten()
    return index[index < m][:count]


def spread_over_chunks(scores: torch.Tensor, chunk: int) -> torch.Tensor:
    """Each of `scores` [m] replaced by the mean of its contiguous chunk of `chunk`; the last chunk may be shorter."""
    if chunk == 1:
        return scores
    means = F.avg_pool1d(scores[None].float(), chunk, ceil_mode=True)[0]
    return means.repeat_interleave(chunk)[: len(scores)]


def drawn(count: int, seed: int) -> torch.Tensor:
    """`count` numbers in [0, 1) on the CPU, the same for the same seed; torch's own generator stays as it is."""
    return torch.rand(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def refuse_nan(scores: torch.Tensor, source: str) -> None:
    """Raise PolicyError if `scores` hold a NaN, which a sort would rank as the highest score."""
    if torch.isnan(scores).any():
        raise PolicyError(nan_message(source))


def nan_message(source: str) -> str:
    """The error's message where `source` scored a token as NaN."""
    return (
        f"{source} scored some tokens as NaN. The hidden states hold NaN or overflow: "
        "check the input, or load the model in bfloat16 or float32 instead of float16."
    )
