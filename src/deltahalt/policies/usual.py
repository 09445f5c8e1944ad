"""Policies with the options that lost least accuracy when measured (docs/lab/journal.md), and the defaults."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.policies.base import AnyPolicy, Policy, Progressive
from deltahalt.policies.both_ends import BothEnds
from deltahalt.policies.dash_layer import DashLayer
from deltahalt.policies.forecast import Forecast
from deltahalt.policies.key_norm import KeyNorm
from deltahalt.policies.max_sim import MaxSim
from deltahalt.policies.window_attention import WindowAttention

AHEAD = 12  # layers of a look-ahead; with more of them, most models lost more accuracy
EARLY = 12  # late interaction decides at layer depth / EARLY by default
SHORTEST = 512  # tokens of a prompt; a shorter one, of which 384 tokens are protected, would gain less than 10 %
# Options of late interaction from the prompt's end alone. A longer window would take in the end of the document.
FINDING = {"window": 16, "kernel": 193, "power": 3, "standardize": True}
PROTECTED = {"chunk": 64, "keep_first": 256, "keep_last": 128}


def safe_default(windows: Sequence[int | None], *, vision: bool = False, offloaded: bool = False) -> AnyPolicy:
    """The default for a model without a profile: by late interaction, a third of the tokens halts in a shallow layer.

    The query tokens are both ends of the prompt, so that its question may stand at either end. With `vision`, attention
    decides instead, since states of words and images are not similar, and each kind of token has its own stage. Half of
    the visual tokens halts after a third of the layers, one by one. A third of the text halts in a shallow layer, after
    a look-ahead. Where layers are offloaded, no look-ahead is possible: then half of the text halts after half of the
    layers.

    windows: for each layer, the number of tokens that a query attends to; None for all. Raises UnsupportedError for a
    vision-language model in which no layer that may decide sees the whole prompt.
    """
    depth = len(windows)
    if not vision:
        return matched(depth // EARLY, 0.35)
    images = seen(_whole(windows, depth // 3), 0.5)
    start = _whole(windows, depth // (2 if offloaded else 7))
    ahead = 0 if offloaded else min(AHEAD, depth - 1 - start)
    text = attended(start, 0.5 if offloaded else 0.35, scope="text", ahead=ahead)
    return Progressive([images, text] if offloaded else [text, images])


def _whole(windows: Sequence[int | None], first: int) -> int:
    """The first layer from `first` on that sees the whole prompt and is not the last; UnsupportedError without one."""
    start = next((layer for layer in range(first, len(windows) - 1) if windows[layer] is None), None)
    if start is None:
        raise UnsupportedError(
            f"no layer of this model from {first} on attends to the whole prompt, so there is no default policy: "
            "name one, such as max-sim"
        )
    return start


def blind_default(windows: Sequence[int | None]) -> Policy:
    """The default for prompts without their question, for a model without a profile: an exit after 3/4 of the layers.

    An exit needs layers that all see the whole prompt. Without them a third of the tokens halts in a shallow layer
    (1.5x fewer FLOPs).
    """
    depth = len(windows)
    return keyed(depth // 6, 0.36) if any(windows) else exit_at(min(3 * depth // 4, depth - 2))


def exit_at(start: int) -> Policy:
    """All tokens but the last halt, and deeper layers get K/V of predicted states."""
    return Forecast(start=start)


def updated(start: int, pruning_ratio: float) -> Policy:
    """Tokens that the start layer changes little halt, whatever the question is."""
    return _in_chunks(DashLayer(start=start, pruning_ratio=pruning_ratio))


def keyed(start: int, pruning_ratio: float) -> Policy:
    """Tokens with large keys halt, whatever the question is."""
    return _in_chunks(KeyNorm(start=start, pruning_ratio=pruning_ratio, boundary="attention"))


def matched(start: int, pruning_ratio: float) -> Policy:
    """Tokens halt by late interaction with both ends of the prompt; prompts below `SHORTEST` tokens stay whole."""
    return _in_chunks(BothEnds(start=start, pruning_ratio=pruning_ratio, shortest=SHORTEST))


def resembling(start: int, pruning_ratio: float, **options: Any) -> Policy:
    """Tokens halt by late interaction with the prompt's end. options: those of MaxSim; None or 0 keeps a default."""
    return _in_chunks(MaxSim(start=start, pruning_ratio=pruning_ratio), **FINDING | options)


def attended(start: int, pruning_ratio: float, **options: Any) -> Policy:
    """Tokens halt by window attention. options: those of WindowAttention; one that is None or 0 keeps its default.

    The score does not depend on the FFN of the start layer, so tokens halt before it: the same ones, for less work.
    """
    policy = WindowAttention(start=start, pruning_ratio=pruning_ratio, boundary="attention", heads="max")
    return _in_chunks(policy, **options)


def seen(start: int, pruning_ratio: float) -> Policy:
    """Visual tokens halt by window attention, each by its own score: what a question is about may be one of them."""
    options: dict[str, Any] = {"scope": "visual", "boundary": "attention", "heads": "max", "kernel": 1}
    return WindowAttention(start=start, pruning_ratio=pruning_ratio, **options)


def _in_chunks(policy: Policy, **options: Any) -> Policy:
    return replace(policy, **PROTECTED | {name: value for name, value in options.items() if value})
