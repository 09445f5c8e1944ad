"""The counts of one step: how many tokens of each request the deep layers run. All of it is known on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deltahalt.errors import UnsupportedError
from deltahalt.policies.base import Policy


@dataclass(frozen=True)
class Row:
    """A request in a step.

    policy: None where its prompt stays whole. prompt: number of tokens in its prompt. computed: number of its tokens
    that earlier steps ran. scheduled: number that this step runs. dropped: number of its prompt's tokens that halt.
    """

    policy: Policy | None
    prompt: int
    computed: int
    scheduled: int
    dropped: int

    @property
    def halts(self) -> bool:
        """Whether tokens halt in this step. Recomputed after a preemption, a prompt comes with generated tokens."""
        return self.dropped > 0 and self.computed == 0

    def check(self) -> None:
        """Raise UnsupportedError if the step has only a part of a prompt that halts."""
        whole = self.computed == 0 and self.scheduled >= self.prompt
        if self.dropped and self.computed < self.prompt and not whole:
            raise UnsupportedError(
                f"vLLM ran tokens {self.computed} to {self.computed + self.scheduled} of a prompt of {self.prompt}, "
                "but a prompt must come whole for its tokens to halt: set --no-enable-chunked-prefill and "
                "--no-enable-prefix-caching"
            )


@dataclass(frozen=True)
class Plan:
    """All requests of one step, in the order of its batch."""

    rows: Sequence[Row]

    def __post_init__(self) -> None:
        for row in self.rows:
            row.check()

    @cached_property
    def halts(self) -> bool:
        """Whether tokens halt in this step."""
        return any(row.halts for row in self.rows)

    @cached_property
    def dropped(self) -> np.ndarray:
        """[requests] Number of tokens that deep layers do not hold, now or since an earlier step."""
        return np.array([row.dropped for row in self.rows], dtype=np.int32)

    @cached_property
    def starts(self) -> np.ndarray:
        """[requests + 1] Where each request's tokens start in shallow layers, and their number."""
        return _starts([row.scheduled for row in self.rows])

    @cached_property
    def queries(self) -> np.ndarray:
        """[requests] Number of tokens that deep layers run."""
        return np.array([row.scheduled - row.dropped * row.halts for row in self.rows], dtype=np.int32)

    @cached_property
    def deep_starts(self) -> np.ndarray:
        """[requests + 1] Where each request's tokens start in deep layers, and their number."""
        return _starts(self.queries)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[requests] Number of tokens that deep layers hold after this step."""
        held = [row.computed + row.scheduled - row.dropped for row in self.rows]
        return np.array(held, dtype=np.int32)

    @cached_property
    def owners(self) -> np.ndarray:
        """[deep tokens] The request of each token that deep layers run."""
        return np.repeat(np.arange(len(self.rows)), self.queries)

    @cached_property
    def places(self) -> np.ndarray:
        """[deep tokens] Index of each token among those of its request that deep layers hold."""
        first = self.lengths - self.queries - self.deep_starts[:-1]
        return np.arange(self.deep_starts[-1]) + np.repeat(first, self.queries)


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
