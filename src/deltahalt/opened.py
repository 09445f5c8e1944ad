"""A layer run in its two halves, so that a policy can look at it and tokens can halt in it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from deltahalt.call import Call
from deltahalt.decision import Decision
from deltahalt.errors import UnsupportedError
from deltahalt.families.base import Module
from deltahalt.policy import LayerView
from deltahalt.stream import TokenStream
from deltahalt.trace import Trace


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
        shell = copy.copy(self.layer)
        shell.forward = self._within_hook(self._halves)
        hidden = shell(self.stream.hidden, **inputs)
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
        after = None if inside else stream.hidden
        decision.observe(partial(_view, self.index, self.call, before, update, after, stream.hidden))
        if self.index == decision.stage.last:
            stream = self.trace.halt(self.index, decision.active_sets(stream), stream, freeze=self.freeze)
        if inside:
            stream = self.fed = stream.advance(family.feed_forward(self.layer, stream.hidden))
        self.after = stream
        return stream.hidden

    def _within_hook(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`forward` inside the accelerate hook that the layer may have: it brings weights and inputs together."""
        hook = getattr(self.layer, "_hf_hook", None)
        if hook is None:
            return forward

        def hooked(*args: Any, **kwargs: Any) -> torch.Tensor:
            args, kwargs = hook.pre_forward(self.layer, *args, **kwargs)
            out: torch.Tensor = hook.post_forward(self.layer, forward(*args, **kwargs))
            return out

        return hooked


def _view(
    index: int,
    call: Call,
    before: TokenStream,
    update: torch.Tensor,
    after: torch.Tensor | None,
    now: torch.Tensor,
    row: int,
) -> LayerView:
    """The row's tokens at one layer, without batch or padding. now: [B, n, D] the latest states there are."""
    own = before.row(row)
    hidden = before.hidden[row, own]  # [n, D]
    positions = before.slots[row, own] - (call.width - call.prompts[row])
    view = LayerView(
        layer=index,
        prompt=call.prompts[row],
        positions=positions.to(hidden.device),
        hidden_in=hidden,
        update=update[row, own],
        hidden_out=None if after is None else after[row, own],
        **_attention(index, call, before, hidden, row),
    )

    def deeper(steps: int) -> LayerView | None:
        if index + steps >= len(call.windows):
            return None
        return replace(view, layer=index + steps, **_attention(index + steps, call, before, now[row, own], row))

    return replace(view, deeper=deeper)


def _attention(index: int, call: Call, stream: TokenStream, hidden: torch.Tensor, row: int) -> dict[str, Any]:
    """What attention at layer `index` would make of states [n, D], for a LayerView.

    Raises UnsupportedError for a layer whose weights are not there: accelerate brings them for its own run alone.
    """
    layer, family = call.layers[index], call.family
    own, weight = stream.row(row), layer.self_attn.o_proj.weight
    cos, sin = (
        part[row if len(part) > 1 else 0, own] for part in stream.rotary[family.rotary_kind(call.config, index)]
    )

    def there(states: torch.Tensor) -> torch.Tensor:
        if weight.is_meta:
            raise UnsupportedError(f"layer {index} is offloaded, so no look ahead at it is possible: use ahead=0")
        return states[None].to(weight.device)

    return {
        "queries": lambda last: family.queries(layer, there(hidden[-last:]), (cos[None, -last:], sin[None, -last:]))[0],
        "keys": lambda: family.keys(layer, there(hidden), (cos[None], sin[None]))[0],
        "scaling": layer.self_attn.scaling,
        "window": call.windows[index],
    }
