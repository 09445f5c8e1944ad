"""What the host's attention takes as its mask for each piece of a stream."""

import torch

from deltahalt.engine.keys import Keys
from deltahalt.engine.mask import attention_mask
from deltahalt.host.lower_right import LowerRight


class PieceMasks:
    """The masks of pieces in one run of layers that read the same keys.

    sdpa needs no mask where the keys are in the order of the prompt, with padding only before them: a piece reads all
    keys up to its own. A window needs a mask of the piece and the keys that the window reaches. All others need one of
    the piece and every key up to its own, which eager attention makes in any case.

    keys: what the stream's tokens read; the last `tokens` of them are its own. attention: the host's implementation.
    """

    def __init__(self, keys: Keys, tokens: int, *, attention: str, dtype: torch.dtype) -> None:
        self.keys, self.attention, self.dtype = keys, attention, dtype
        self.before = keys.slots.shape[1] - tokens
        aligned = attention == "sdpa" and keys.window is None and keys.in_order
        self.starts = _starts(keys) if aligned else None

    @property
    def window(self) -> int | None:
        """How many keys back a query can see, itself included; None for all."""
        return self.keys.window

    def of(self, piece: slice) -> torch.Tensor | LowerRight | None:
        """The mask of the tokens in these columns of the stream, or what aligns sdpa without one."""
        if self.starts is not None:
            return LowerRight(self.starts)
        begin, end = self.before + piece.start, self.before + piece.stop
        first = 0 if self.window is None else max(0, begin - self.window + 1)
        return attention_mask(
            self.keys.slots[:, begin:end],
            self.keys.slots[:, first:end],
            padded=self.keys.padded,
            window=self.window,
            attention=self.attention,
            dtype=self.dtype,
        )


def _starts(keys: Keys) -> tuple[int, ...] | None:
    """For each row, the number of padding keys before all others; empty without padding, None where it is elsewhere."""
    if not keys.padded:
        return ()
    real = keys.slots >= 0
    starts = (~real).sum(dim=1)
    place = torch.arange(real.shape[1], device=real.device)
    return tuple(starts.tolist()) if torch.equal(real, place >= starts[:, None]) else None
