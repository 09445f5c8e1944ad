"""The decoder loop: the host's own layers, on fewer and fewer tokens."""

from collections.abc import Iterable

from deltahalt.engine.call import DecoderCall
from deltahalt.engine.decision import decide
from deltahalt.engine.host_layer import HostLayer
from deltahalt.engine.last_layer import leave
from deltahalt.engine.opened import OpenedLayer
from deltahalt.engine.piece_layer import PieceLayer
from deltahalt.engine.store import store
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.host.families.base import Module
from deltahalt.policies.base import Stage


def run_layers(
    layers: Iterable[tuple[int, Module]], stages: tuple[Stage, ...], stream: TokenStream, call: DecoderCall
) -> tuple[TokenStream, Trace]:
    """Run numbered layers of the host, halting tokens at each of `stages` (DASH, Alg. 1); fills the call's cache.

    Returns the tokens that are still active, and the trace of the run.
    """
    trace, decision = Trace.begin(stream, dropped=call.layout.dropped), None
    begins = {stage.first: stage for stage in stages}
    resting = call.resting
    if resting is not None:
        begins[resting.stage.first] = resting.stage
    plans = call.masks.layers_per_plan(stages, call.exit_layer)
    for index, layer in layers:
        if index in begins:
            decision = decide(begins[index], call.layout.active_rows(stream), even_whole=resting is not None)
        for readable in trace.readable:
            store(readable.as_of(stream.prompt), index, layer, call)
        if index == call.exit_layer:
            stream = leave(stream, index, layer, call, trace)
        attended, kv_only = stream.lengths, trace.readable_tokens(len(stream.lengths))
        kind = PieceLayer if stream.width > call.piece else HostLayer
        host_layer, lookahead = kind.on(stream, index, layer, call, trace, plans[index]), (0,) * len(attended)
        with host_layer.around:
            if decision is None:
                stream = ffn = stream.advance(host_layer.run())
            else:
                lookahead = decision.lookahead_tokens(index, attended, len(plans))
                stream, ffn = OpenedLayer(host_layer, decision, trace).run()
                decision = None if index == decision.stage.last else decision
        if call.layout.prompts:  # a generated token is not reported
            trace.log(attended, ffn.lengths, kv_only, lookahead)
        stream = call.after_layer(index, stream)
    return stream, trace
