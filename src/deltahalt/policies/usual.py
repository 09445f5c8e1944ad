"""Policies in the forms that lost least when measured (docs/lab/journal.md), and the defaults made of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.policies.base import Policy
from deltahalt.policies.dash_layer import DashLayer
from deltahalt.policies.forecast import Forecast
from deltahalt.policies.key_norm import KeyNorm
from deltahalt.policies.max_sim import MaxSim
from deltahalt.policies.window_attention import WindowAttention

AHEAD = 12  # layers of a look ahead; with more, most models lost more
EARLY = 12  # late interaction usually decides at layer depth / EARLY
# How late interaction usually scores. With a longer window, the end of the document is part of the query.
FINDING = {"window": 16, "kernel": 193, "power": 3, "standardize": True}
PROTECTED = {"chunk": 64, "keep_first": 256, "keep_last": 128}


def safe_default(windows: Sequence[int | None], *, vision: bool = False, offloaded: bool = False) -> Policy:
    """For a model that nobody has calibrated: a third of the tokens halt early, by late interaction.

    Words do not resemble pictures, so with `vision` attention decides, after a look ahead; or where layers are
    offloaded, so that none is possible, half of the tokens halt after half of the layers.
    windows: for each layer, how many tokens back it attends; None for all.
    Raises UnsupportedError for a vision-language model in which no such layer sees the whole prompt.
    """
    if not vision:
        return resembling(len(windows) // EARLY, 0.35)
    first = len(windows) // (2 if offloaded else 7)
    start = next((layer for layer in range(first, len(windows) - 1) if windows[layer] is None), None)
    if start is None:
        raise UnsupportedError("no layer of this model sees the whole prompt: name a policy, such as max-sim")
    return attended(start, 0.5) if offloaded else attended(start, 0.35, ahead=min(AHEAD, len(windows) - 1 - start))


def blind_default(windows: Sequence[int | None]) -> Policy:
    """For prompts without their question, in a model that nobody has calibrated: tokens stop after three quarters.

    Where a layer does not see the whole prompt they cannot; a third of the tokens then halt early, at 1.5x.
    """
    depth = len(windows)
    return keyed(depth // 6, 0.36) if any(windows) else exit_at(min(3 * depth // 4, depth - 2))


def exit_at(start: int) -> Policy:
    """All tokens but the latest stop, and deeper layers get K/V of what they would have become."""
    return Forecast(start=start)


def updated(start: int, pruning_ratio: float) -> Policy:
    """Tokens that a layer changes little halt, whatever the question is."""
    return _in_chunks(DashLayer(start=start, pruning_ratio=pruning_ratio))


def keyed(start: int, pruning_ratio: float) -> Policy:
    """Tokens with large keys halt, whatever the question is."""
    return _in_chunks(KeyNorm(start=start, pruning_ratio=pruning_ratio, boundary="attention"))


def resembling(start: int, pruning_ratio: float, **options: Any) -> Policy:
    """Late interaction. options: those of MaxSim; None or 0 leaves one at its default."""
    return _in_chunks(MaxSim(start=start, pruning_ratio=pruning_ratio), **FINDING | options)


def attended(start: int, pruning_ratio: float, **options: Any) -> Policy:
    """Attention of the last window. options: those of WindowAttention; None or 0 leaves one at its default.

    It does not read the output of the start layer's FFN, so tokens halt before it: the same tokens for less work.
    """
    policy = WindowAttention(start=start, pruning_ratio=pruning_ratio, boundary="attention", heads="max")
    return _in_chunks(policy, **options)


def _in_chunks(policy: Policy, **options: Any) -> Policy:
    return replace(policy, **PROTECTED | {name: value for name, value in options.items() if value})
