"""The keys that a layer's tokens read."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Keys:
    """The keys that the tokens of a stream read in a run of layers: those in the cache, then their own.

    slots: [B, k] column of the input that each came from; -1 for padding. padded: whether any is. window: how many
    columns back a query sees, itself included; None for all. in_order: whether they are in the order of the input.
    """

    slots: torch.Tensor
    padded: bool
    window: int | None
    in_order: bool
