"""The counts of one step: which tokens of each request the deep layers run. All of it is known on the CPU."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from deltahalt.policies.base import Policy


def held(tokens: int, prompt: int, prefix: int, dropped: int) -> int:
    """Number of tokens that deep layers hold of a request, once its first `tokens` have run. For the rest see `Row`."""
    return min(tokens, prefix) if dropped and tokens < prompt else tokens - dropped


@dataclass(frozen=True)
class Row:
    """A request in a step.

    name: its id. policy: None where its prompt stays whole. prompt: number of tokens in its prompt. prefix: number of
    its first tokens that never halt. computed: number of its tokens that earlier steps ran, or that other requests
    have run. scheduled: number that this step runs. dropped: number of its prompt's tokens that halt.
    """

    name: str
    policy: Policy | None
    prompt: int
    prefix: int
    computed: int
    scheduled: int
    dropped: int

    @property
    def end(self) -> int:
        """Number of its tokens that have run after this step."""
        return self.computed + self.scheduled

    @property
    def waits(self) -> bool:
        """Whether a later step brings the last token of a prompt that halts: until then deep layers run its prefix."""
        return self.dropped > 0 and self.end < self.prompt

    @property
    def halts(self) -> bool:
        """Whether tokens halt in this step. Recomputed after a preemption, a prompt comes with generated tokens."""
        return self.dropped > 0 and self.computed < self.prompt <= self.end

    @property
    def chosen(self) -> tuple[int, int]:
        """Where, among its tokens in this step, those start and end among which the policy chooses."""
        if not self.halts and not self.waits:
            return self.scheduled, self.scheduled
        return max(0, min(self.end, self.prefix) - self.computed), min(self.end, self.prompt) - self.computed

    @property
    def before(self) -> int:
        """Number of its tokens that deep layers run in this step, those from which the policy chooses on left out."""
        return self.chosen[0]

    @property
    def after(self) -> int:
        """Number of its tokens that deep layers run in this step beside these: those that stay, and generated ones."""
        return self.held - self.held_before - self.before

    @property
    def held_before(self) -> int:
        """Number of its tokens that deep layers hold before this step."""
        return self._held(self.computed)

    @property
    def held(self) -> int:
        """Number of its tokens that deep layers hold after this step."""
        return self._held(self.end)

    def _held(self, tokens: int) -> int:
        return held(tokens, self.prompt, self.prefix, self.dropped)

    @property
    def decoding(self) -> "Row":
        """The same request as one that decodes the last token of this step, if deep layers hold those before it.

        While a prompt waits for its last chunk, deep layers hold its prefix only. The token is then written right after
        the prefix, to a place that holds nothing yet.
        """
        dropped = max(0, self.end - 1 - self.prefix) if self.waits else self.dropped
        return replace(self, computed=max(self.computed, self.prompt), dropped=dropped)


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
    def whole(self) -> bool:
        """Whether deep layers run all their tokens at once, in the order of the batch."""
        return sum(row.before + row.after for row in self.rows) <= self.budget

    @cached_property
    def pieces(self) -> list[Piece]:
        """The tokens that deep layers run, in pieces of at most `budget` tokens.

        If there is more than one, what the rows run before policies choose is the first, since other rows may read it.
        """
        if self.whole:
            counts = [(number, row.before + row.after, row.held) for number, row in enumerate(self.rows)]
            return _pieces([counts])
        before = [(number, row.before, row.held_before + row.before) for number, row in enumerate(self.rows)]
        return _pieces([before, *self._cut()])

    def _cut(self) -> Iterator[list[tuple[int, int, int]]]:
        """For each piece after the first: requests, and numbers of tokens that they run and then hold."""
        piece, room = [], self.budget
        for number, row in enumerate(self.rows):
            left = row.after
            while left:
                count = min(left, room)
                left -= count
                room -= count
                piece.append((number, count, row.held - left))
                if not room:
                    yield piece
                    piece, room = [], self.budget
        yield piece


def _pieces(pieces: Iterable[Iterable[tuple[int, int, int]]]) -> list[Piece]:
    """Those of these pieces that have tokens, of the requests that have some in them."""
    busy = ([entry for entry in piece if entry[1]] for piece in pieces)
    columns = [zip(*piece, strict=True) for piece in busy if piece]
    # a kernel reads each array as contiguous memory
    return [Piece(*(np.array(column, dtype=np.int32) for column in three)) for three in columns]


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
