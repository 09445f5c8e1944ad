"""Halted tokens that go on serving K and V: of the states they stopped at, or of what these would have become."""

import torch
from torch.nn.functional import normalize

from deltahalt.engine.stream import TokenStream


class Served:
    """Tokens as they stopped, and how each of them changes with tokens that run on.

    halted, running: the tokens where the former stop; `running` are the last of each row, which no stage halts.
    penalty: None, and halted tokens stay as they stopped. Else each changes by a sum of the changes of its row's
    running tokens, weighed as `ridge_weights` says.
    """

    def __init__(self, halted: TokenStream, running: TokenStream, penalty: float | None) -> None:
        self.halted, self.running = halted, running
        self.weights = [  # by row, [halted, running]
            ridge_weights(running.hidden[row, running.row(row)], halted.hidden[row, halted.row(row)], penalty)
            for row in range(len(halted.lengths))
            if penalty is not None
        ]

    def pairs(self, row: int) -> int:
        """How many weights the row has."""
        return self.weights[row].numel() if self.weights else 0

    def as_of(self, stream: TokenStream) -> TokenStream:
        """The halted tokens when the running ones are as in `stream`, the last of each row."""
        if not self.weights:
            return self.halted
        hidden = self.halted.hidden.clone()
        for row, weights in enumerate(self.weights):
            before = self.running.hidden[row, self.running.row(row)]
            change = stream.hidden[row, stream.width - len(before) :].to(before.device) - before
            hidden[row, self.halted.row(row)] += weights @ change
        return self.halted.advance(hidden)


def ridge_weights(known: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
    """Weights [m, w] by which what is known of states `known` [w, D] tells the same of states `wanted` [m, D].

    Ridge regression with an intercept on states scaled to unit length; the penalty is a share of the mean squared
    distance of known states from their mean. Solved in its dual form, in which the guess is a weighted mean of
    what is known, so that one set of weights tells of any number of things.
    """
    dtype = known.dtype
    known, wanted = normalize(known.float(), dim=-1), normalize(wanted.float(), dim=-1)
    among, across = known @ known.T, wanted @ known.T  # [w, w], [m, w]
    mean = among.mean(dim=0)
    across = across - across.mean(dim=1, keepdim=True) - mean + mean.mean()
    among = among - mean - mean[:, None] + mean.mean()
    # Where all known states are alike there is nothing to tell them by: their mean is the guess.
    strength = (penalty * among.diagonal().mean()).clamp(min=1e-3)
    among.diagonal().add_(strength)
    weights = torch.linalg.solve_ex(among, across.T)[0].T
    return (weights + (1 - weights.sum(dim=1, keepdim=True)) / len(known)).to(dtype)
