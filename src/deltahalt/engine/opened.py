"""A layer run in its two halves, so that a policy can read its parts and tokens can halt in it."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from deltahalt.engine.decision import Decision
from deltahalt.engine.host_layer import HostLayer
from deltahalt.engine.readable import Readable
from deltahalt.engine.resting import Resting
from deltahalt.engine.resuming import choose, may_resume
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.engine.views import view_layer
from deltahalt.host.stand_in import within_hook


@dataclass
class OpenedLayer:
    """A layer of the host, about to run on its stream.

    decision: observes the layer and, if it is the stage's last, chooses who stays active. trace: notes who halted.
    after, ffn: once run, the tokens that leave the layer, and those that went through its FFN.
    """

    layer: HostLayer
    decision: Decision
    trace: Trace
    after: TokenStream = field(init=False)
    ffn: TokenStream = field(init=False)

    def run(self) -> tuple[TokenStream, TokenStream]:
        """Returns the tokens that leave the layer, and those that went through its FFN.

        Runs a shallow copy of the layer, so that hooks on it fire and no other thread sees the change.
        """
        hidden = within_hook(self.layer.layer, self._halves)(self.layer.stream.hidden, **self.layer.inputs)
        return self.after.advance(hidden), self.ffn

    def _halves(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        layer, decision = self.layer, self.decision
        before, call = layer.stream.advance(hidden), layer.call
        update = layer.attention(hidden, **inputs)
        stream = before.advance(call.host.family.add_attention(layer.layer, hidden, update))
        inside = decision.halts_inside(layer.index)
        if not inside:
            stream = stream.advance(layer.feed_forward(stream.hidden))
        self.ffn = stream
        output = None if inside else stream.hidden
        decision.observe(partial(view_layer, layer.index, call, before.prompt, update, output, stream.hidden))
        if layer.index == decision.stage.last:
            stream = self._halt(stream)
        if inside:
            stream = self.ffn = stream.advance(layer.feed_forward(stream.hidden))
        self.after = stream
        return stream.hidden

    def _halt(self, whole: TokenStream) -> TokenStream:
        """The tokens that deeper layers run on: those of `whole` that stay active, and those of earlier turns."""
        stream = self._active(whole) if self.decision.rows else whole
        resting = self.layer.call.resting
        return stream if resting is None else self._resumed(resting, whole.prompt, stream)

    def _active(self, whole: TokenStream) -> TokenStream:
        """The tokens of `whole` that stay active."""
        decision, prompts = self.decision, whole.prompt
        active = decision.active_sets(prompts.lengths, prompts.slots.device)
        stream, states = whole.keep(active), decision.stage.halted_states
        rests = may_resume(decision.stage, self.layer.call)
        if states is not None or rests:
            halted = prompts.keep([_complement(kept, n) for kept, n in zip(active, prompts.lengths, strict=True)])
            if states is not None:
                self.trace.readable.append(Readable(halted, stream.prompt.last(decision.stage.running), states))
            if rests:
                self.trace.resting = Resting(decision.stage, halted)
        self.trace.halt(self.layer.index, stream, decision.row_scores())
        self.trace.nan_checks += decision.nan_checks()
        return stream

    def _resumed(self, resting: Resting, turn: TokenStream, stream: TokenStream) -> TokenStream:
        """`stream`, and before it those of the resting tokens that run on. turn: the whole turn's tokens."""
        chosen, checks = choose(resting, turn, self.layer.index)
        lengths, halted = resting.tokens.lengths, self.trace.resting
        others = [_complement(index, count) for index, count in zip(chosen, lengths, strict=True)]
        left = replace(resting, tokens=resting.tokens.keep(others))
        self.trace.resting = left if halted is None else left.followed_by(halted.tokens)
        stream = stream.preceded_by(resting.tokens.keep(chosen))
        self.trace.resume(self.layer.index, stream, tuple(map(len, chosen)))
        self.trace.nan_checks += checks
        return stream


def _complement(index: torch.Tensor, length: int) -> torch.Tensor:
    """The numbers below `length` that are not in `index`, ascending. It does not wait for the device."""
    others = torch.ones(length, dtype=torch.uint8, device=index.device).index_fill_(0, index, 0)
    return others.argsort(descending=True, stable=True)[: length - len(index)]
