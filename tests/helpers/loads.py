"""Loads of a prefill of which only the last token's logits are wanted."""

from collections.abc import Sequence

from deltahalt.flops import LayerLoad


def with_exit(loads: Sequence[LayerLoad]) -> list[LayerLoad]:
    """These loads, if the last layer runs on the last token alone and computes K and V of the others."""
    *others, last = loads
    return [*others, LayerLoad(1, 1, kv_only_tokens=last.attended - 1)]
