"""Halted tokens whose K and V deeper layers still hold."""

from deltahalt.engine.stream import TokenStream
from deltahalt.policies.halted_states import LastState


class Readable:
    """Tokens halted at one stage that deeper layers still read, and how their states follow the running tokens.

    halted, running: the tokens where the former stop; `running` are the last of each row, which no stage halts.
    states: the rule that gives the states of deeper layers. in_order: whether they come before all active tokens.
    """

    def __init__(self, halted: TokenStream, running: TokenStream, states: LastState) -> None:
        self.halted, self.running, self.in_order = halted, running, states.in_order
        rows = range(len(halted.lengths))
        weights = [
            states.weights(running.hidden[row, running.row(row)], halted.hidden[row, halted.row(row)]) for row in rows
        ]
        self.weights = [own for own in weights if own is not None]  # by row, [halted, running]; empty: states stay

    def pairs(self, row: int) -> int:
        """How many weights the row has."""
        return self.weights[row].numel() if self.weights else 0

    def as_of(self, stream: TokenStream) -> TokenStream:
        """The halted tokens with their states when the running ones, the last of each row, are as in `stream`."""
        if not self.weights:
            return self.halted
        hidden = self.halted.hidden.clone()
        for row, weights in enumerate(self.weights):
            before = self.running.hidden[row, self.running.row(row)]
            change = stream.hidden[row, stream.width - len(before) :].to(before.device) - before
            hidden[row, self.halted.row(row)] += weights @ change
        return self.halted.advance(hidden)
