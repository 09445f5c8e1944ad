"""The counts of one step: which tokens of each request the deep layers run. All of it is known on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from deltahalt.policies.base import Policy


@dataclass(frozen=True)
class Row:
    """A request in a step.

    name: its id. policy: None where its prompt stays whole. prompt: number of tokens in its prompt. computed: number of
    its tokens that earlier steps ran. scheduled: number that this step runs. dropped: number of its prompt's tokens
    that halt.
    """

    name: str
    policy: Policy | None
    prompt: int
    computed: int
    scheduled: int
    dropped: int

    @property
    def end(self) -> int:
        """Number of its tokens that have run after this step."""
        return self.computed + self.scheduled

    @property
    def waits(self) -> bool:
        """Whether a later step brings the last token of a prompt that halts: until then deep layers run none of it."""
        return self.dropped > 0 and self.end < self.prompt

    @property
    def halts(self) -> bool:
        """Whether tokens halt in this step. Recomputed after a preemption, a prompt comes with generated tokens."""
        return self.dropped > 0 and self.computed < self.prompt <= self.end

    @property
    def held(self) -> int:
        """Number of its tokens that deep layers hold after this step."""
        return 0 if self.waits else self.end - self.dropped

    @property
    def queries(self) -> int:
        """Number of its tokens that deep layers run in this step."""
        return self.held if self.halts or self.waits else self.scheduled

    @property
    def decoding(self) -> "Row":
        """The same request as one that decodes the last token of this step, if deep layers hold those before it."""
        return replace(self, computed=max(self.computed, self.prompt), dropped=min(self.dropped, self.end - 1))


@dataclass(frozen=True)
class Piece:
    """Tokens that deep layers run at once, of some requests of a step.

    requests: [r] index of each request in the step. queries: [r] number of its tokens in this piece. lengths: [r]
    number of its tokens that deep layers hold after it.
    """

    requests: np.ndarray
    queries: np.ndarray
    lengths: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """[r + 1] Where each request's tokens start in the piece, and their number."""
        return _starts(self.queries)

    @cached_property
    def owners(self) -> np.ndarray:
        """[tokens] The request of each token, as its index in the step."""
        return np.repeat(self.requests, self.queries)

    @cached_property
    def places(self) -> np.ndarray:
        """[tokens] Index of each token among those of its request that deep layers hold."""
        first = self.lengths - self.queries - self.starts[:-1]
        return np.arange(self.starts[-1]) + np.repeat(first, self.queries)


@dataclass(frozen=True)
class Plan:
    """All requests of one step, in the order of its batch.

    budget: number of tokens that a layer runs at once. At the last chunk of a prompt deep layers may have more.
    """

    rows: Sequence[Row]
    budget: int

    @cached_property
    def dropped(self) -> bool:
        """Whether deep layers do not hold some tokens of these requests, now or since an earlier step."""
        return any(row.dropped for row in self.rows)

    @cached_property
    def halts(self) -> bool:
        """Whether deep layers run other tokens than shallow ones in this step."""
        return any(row.halts or row.waits for row in self.rows)

    @cached_property
    def starts(self) -> np.ndarray:
        """[requests + 1] Where each request's tokens start in shallow layers, and their number."""
        return _starts([row.scheduled for row in self.rows])

    @cached_property
    def pieces(self) -> list[Piece]:
        """The tokens that deep layers run, in the order of the batch, in pieces of at most `budget` tokens."""
        pieces: list[list[tuple[int, int, int]]] = []
        room = 0
        for number, row in enumerate(self.rows):
            left = row.queries
            while left:
                if not room:
                    pieces.append([])
                    room = self.budget
                count = min(left, room)
                left -= count
                room -= count
                pieces[-1].append((number, count, row.held - left))
        columns = [zip(*piece, strict=True) for piece in pieces]
        return [Piece(*(np.array(column, dtype=np.int32) for column in three)) for three in columns]


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
