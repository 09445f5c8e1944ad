"""A layer run in its two halves, so that a policy can look at it and tokens can halt in it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deltahalt.engine.call import Call
from deltahalt.engine.decision import Decision
from deltahalt.engine.served import Served
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.engine.views import view_layer
from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import within_hook


@dataclass
class OpenedLayer:
    """Layer number `index` of the host, about to run on `stream`.

    decision: observes the layer and, if it is the stage's last, says who stays active. trace: notes who halted. freeze:
    as in `run_layers`.
    """

    index: int
    layer: Module
    stream: TokenStream
    call: Call
    decision: Decision
    trace: Trace
    freeze: bool

    def run(self, inputs: dict[str, Any]) -> tuple[TokenStream, TokenStream]:
        """The tokens after the layer, and those that went through its FFN.

        Goes through a shallow copy of the layer, so that hooks on it fire and no other thread sees the change.
        """
        hidden = within_hook(self.layer, self._halves)(self.stream.hidden, **inputs)
        return self.after.advance(hidden), self.fed

    def _halves(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        family, decision = self.call.family, self.decision
        before = self.stream.advance(hidden)
        update = family.attention(self.layer, hidden, **inputs)
        stream = before.advance(family.add_attention(self.layer, hidden, update))
        inside = decision.halts_inside(self.index)
        if not inside:
            stream = stream.advance(family.feed_forward(self.layer, stream.hidden))
        self.fed = stream
        after, prompts = None if inside else stream.hidden, self.call.prompts_of(before)
        scored = self.call.scored if prompts.lengths == self.call.prompts else None  # of whole prompts
        decision.observe(partial(view_layer, self.index, self.call, prompts, update, after, stream.hidden), scored)
        if self.index == decision.stage.last:
            active = [self._with_behind(kept, row) for row, kept in enumerate(decision.active_sets(prompts))]
            whole, stream = stream, stream.keep(active)
            if self.freeze or decision.stage.serves_halted:
                halted = whole.keep([_complement(kept, n) for kept, n in zip(active, whole.lengths, strict=True)])
                running = self.call.prompts_of(stream).last(decision.stage.running)
                self.trace.served.append(Served(halted, running, decision.stage.penalty))
            self.trace.halt(self.index, stream, decision.row_scores())
        if inside:
            stream = self.fed = stream.advance(family.feed_forward(self.layer, stream.hidden))
        self.after = stream
        return stream.hidden

    def _with_behind(self, kept: torch.Tensor, row: int) -> torch.Tensor:
        """The index `kept` [k] of the row's prompt, and of what comes after it."""
        behind, length = self.call.behind, self.stream.lengths[row]
        return torch.cat([kept, torch.arange(length - behind, length, device=kept.device)]) if behind else kept


def _complement(index: torch.Tensor, length: int) -> torch.Tensor:
    """The numbers below `length` that are not in `index`, ascending."""
    others = torch.ones(length, dtype=torch.bool, device=index.device)
    others[index] = False
    return others.nonzero().squeeze(1)
