"""The report of a prefill."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltahalt.flops import LayerLoad, ModelShape, dense_loads, true_flops


def in_short(numbers: Sequence[int]) -> str:
    """A few numbers in words; of more than three how many, and their range."""
    if len(numbers) > 3:
        return f"{min(numbers):,} to {max(numbers):,} ({len(numbers)})"
    return " and ".join(f"{number:,}" for number in numbers)


@dataclass(frozen=True)
class Report:
    """The latest prefill of a batch of prompts, or of a later turn in which tokens halted.

    Attributes:
        shape: Sizes of the decoder.
        prompts: Number of tokens in each prompt, or in each later turn.
        stages: For each decision, its layer and the positions [k] of each prompt that stayed active. Layer -1 stands
            for visual tokens dropped before the first layer.
        scores: For each decision and prompt, the policy's score [n] of each token that was active until then; None for
            a prompt that stayed whole.
        loads: For each prompt, what each layer computed.
        cache_bytes: Bytes of K and V after the prefill.
        full_cache_bytes: The same for the full model.
        seconds: Wall time of the prefill; None unless `halting(..., timed=True)`.
        reason: Why no token of the latest prompt or later turn halted; None where some did. The report of an earlier
            prompt stays when no token of a later turn halts, and only this changes.
        cached: For each layer, the number of tokens that its cache held before a later turn; empty for a prompt.
        resumed: For each later turn, the number of halted tokens of earlier ones that ran on in it; empty where none
            could. They count in the FLOPs.

    Example:
        >>> with halting(model, "auto") as halted:  # doctest: +SKIP
        ...     model.generate(**inputs)
        >>> halted.report  # doctest: +SKIP
        Report(prompts of 4,373 tokens, 2,678 active after layer 4, 1.78x fewer FLOPs, K/V 133.8 of 201.5 MB)
    """

    shape: ModelShape
    prompts: tuple[int, ...]
    stages: tuple[tuple[int, tuple[torch.Tensor, ...]], ...]
    scores: tuple[tuple[torch.Tensor | None, ...], ...]
    loads: tuple[tuple[LayerLoad, ...], ...]
    cache_bytes: int
    full_cache_bytes: int
    seconds: float | None
    reason: str | None = None
    cached: tuple[int, ...] = ()
    resumed: tuple[int, ...] = ()

    def __repr__(self) -> str:
        kept = [len(positions) for positions in self.kept]
        layers = " and ".join(str(layer) for layer, _ in self.stages)
        halted = f"{in_short(kept)} active after layer {layers}" if kept != list(self.prompts) else "none halted"
        if any(self.resumed):
            halted += f", {in_short(self.resumed)} of earlier turns ran on"
        gain = f"{self.speedup_bound:.2f}x fewer FLOPs"
        cache = f"K/V {self.cache_bytes / 1e6:.1f} of {self.full_cache_bytes / 1e6:.1f} MB"
        return f"Report(prompts of {in_short(self.prompts)} tokens, {halted}, {gain}, {cache})"

    @property
    def kept(self) -> tuple[torch.Tensor, ...]:
        """For each prompt, the ascending positions [k] of the tokens active after the last decision, on the CPU."""
        if self.stages:
            return tuple(positions.cpu() for positions in self.stages[-1][1])
        return tuple(torch.arange(tokens) for tokens in self.prompts)

    @property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """For each prompt, how many tokens each layer's attention ran on.

        In the last layer this is 1 where tokens halted and only the last token's logits were wanted.
        """
        return tuple(tuple(load.attended for load in loads) for loads in self.loads)

    @property
    def flops(self) -> int:
        """True FLOPs of the prefill, all prompts together (see `deltahalt.flops.true_flops`)."""
        pairs = zip(self.loads, self.prompts, strict=True)
        return sum(true_flops(self.shape, loads, tokens) + self._cached_flops(loads) for loads, tokens in pairs)

    @property
    def full_flops(self) -> int:
        """True FLOPs of the full model on the same prompts, with the same cache before them."""
        pairs = ((dense_loads(self.shape.layers, tokens), tokens) for tokens in self.prompts)
        return sum(true_flops(self.shape, loads, tokens) + self._cached_flops(loads) for loads, tokens in pairs)

    def _cached_flops(self, loads: Sequence[LayerLoad]) -> int:
        """FLOPs of one prompt's attention to the tokens that were in the cache before."""
        pairs = sum(load.attended * held for load, held in zip(loads, self.cached, strict=False))  # none for a prompt
        return 4 * self.shape.heads * self.shape.head_dim * pairs

    @property
    def speedup_bound(self) -> float:
        """What halting can gain at most: the ratio of true FLOPs."""
        return self.full_flops / self.flops
