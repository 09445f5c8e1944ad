"""The decoder loop: the host's own layers, on fewer and fewer tokens."""

from collections.abc import Iterable
from functools import partial

import torch

from deltahalt.call import Call
from deltahalt.decision import decide
from deltahalt.families.base import Module
from deltahalt.policy import LayerView, Stage
from deltahalt.stream import TokenStream
from deltahalt.trace import Trace


def run_layers(
    layers: Iterable[tuple[int, Module]],
    stages: tuple[Stage, ...],
    stream: TokenStream,
    call: Call,
    *,
    freeze: bool = False,
    min_tokens: int = 0,
) -> tuple[TokenStream, Trace]:
    """Run numbered layers of the host, halting tokens at each of `stages` (DASH, Alg. 1); fills the call's cache.

    freeze: halted tokens go on serving K and V of their last hidden state. min_tokens: shorter prompts stay whole.
    Returns the tokens that are still active, and the trace of the run.
    """
    family, trace, decision = call.family, Trace.begin(stream), None
    begins = {stage.first: stage for stage in stages}
    for index, layer in layers:
        if index in begins:
            decision = decide(begins[index], call.prompts, stream, min_tokens)
        frozen = tuple(trace.frozen)
        for halted in frozen:
            _serve(layer, index, halted, call)
        inputs, before = call.layer_inputs(index, stream, trace), stream
        if decision is None:
            stream = fed = stream.advance(layer(stream.hidden, **inputs))
        else:
            update = family.attention(layer, stream.hidden, **inputs)
            stream = stream.advance(family.add_attention(layer, stream.hidden, update))
            inside = decision.halts_inside(index)
            if not inside:
                stream = stream.advance(family.feed_forward(layer, stream.hidden))
            fed = stream
            decision.observe(partial(_view, layer, index, call, before, update, None if inside else stream))
            if index == decision.stage.last:
                stream = trace.halt(index, decision.active_sets(stream), stream, freeze=freeze)
                decision = None
            if inside:
                stream = fed = stream.advance(family.feed_forward(layer, stream.hidden))
        trace.log(before.lengths, fed.lengths, frozen)
    return stream, trace


def _serve(layer: Module, index: int, halted: TokenStream, call: Call) -> None:
    """Put K and V of halted tokens, from their frozen hidden states, into the layer's cache."""
    assert call.cache is not None  # Call refuses frozen K/V without a cache
    family, rotary = call.family, halted.rotary[call.family.rotary_kind(call.config, index)]
    call.cache.update(family.keys(layer, halted.hidden, rotary), family.values(layer, halted.hidden), index)


def _view(
    layer: Module,
    index: int,
    call: Call,
    before: TokenStream,
    update: torch.Tensor,
    after: TokenStream | None,
    row: int,
) -> LayerView:
    """The row's tokens at one layer, without batch or padding."""
    own, family = before.row(row), call.family
    hidden = before.hidden[row, own]  # [n, D]
    cos, sin = (
        part[row if len(part) > 1 else 0, own] for part in before.rotary[family.rotary_kind(call.config, index)]
    )
    return LayerView(
        layer=index,
        prompt=call.prompts[row],
        positions=before.slots[row, own] - (call.width - call.prompts[row]),
        hidden_in=hidden,
        update=update[row, own],
        hidden_out=None if after is None else after.hidden[row, own],
        queries=lambda last: family.queries(layer, hidden[None, -last:], (cos[None, -last:], sin[None, -last:]))[0],
        keys=lambda: family.keys(layer, hidden[None], (cos[None], sin[None]))[0],
        scaling=layer.self_attn.scaling,
        window=call.windows[index],
    )
