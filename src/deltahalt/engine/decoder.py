"""The decoder loop: the host's own layers, on fewer and fewer tokens."""

from collections.abc import Iterable
from itertools import pairwise

from deltahalt.engine.call import Call
from deltahalt.engine.decision import decide
from deltahalt.engine.opened import OpenedLayer
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.host.compat import layer_output
from deltahalt.host.families.base import Module
from deltahalt.policies.base import Stage


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

    freeze: all halted tokens go on serving K and V, of the states they stopped at unless their stage says otherwise.
    min_tokens: shorter prompts stay whole. Returns the tokens that are still active, and the trace of the run.
    """
    trace, decision = Trace.begin(stream, dropped=call.dropped), None
    begins = {stage.first: stage for stage in stages}
    alike = _layers_alike(stages, call)
    for index, layer in layers:
        if index in begins:
            decision = decide(begins[index], call, stream, min_tokens)
        attended, frozen = stream.lengths, trace.serving(len(stream.lengths))
        for served in trace.served:
            _serve(layer, index, served.as_of(call.prompts_of(stream)), call)
        inputs, around = call.layer_inputs(index, stream, trace, alike[index])
        looked = (0,) * len(attended) if decision is None else decision.looked(index, attended, len(call.layers))
        with around:
            if decision is None:
                stream = fed = stream.advance(layer_output(layer(stream.hidden, **inputs)))
            else:
                opened = OpenedLayer(index, layer, stream, call, decision, trace, freeze)
                stream, fed = opened.run(inputs)
                decision = None if index == decision.stage.last else decision
        if call.prompts:  # no report tells of generated tokens
            trace.log(attended, fed.lengths, frozen, looked)
        stream = call.after_layer(index, stream)
    return stream, trace


def _layers_alike(stages: tuple[Stage, ...], call: Call) -> list[int | None]:
    """For each layer, how many run on the same tokens in the same window, itself included; None where all do the first.

    cuDNN plans once for such layers.
    """
    borders = {0, len(call.layers), *(stage.last + 1 for stage in stages), *(segment.start for segment in call.past)}
    runs = [call.windows[begin:end] for begin, end in pairwise(sorted(borders))]
    if len(runs) == 1:
        return [None] * len(call.layers)
    return [windows.count(window) for windows in runs for window in windows]


def _serve(layer: Module, index: int, halted: TokenStream, call: Call) -> None:
    """Put K and V of halted tokens, from the states they are given here, into the layer's cache."""
    assert call.cache is not None  # Call refuses frozen K/V without a cache
    rotary = halted.rotary[call.family.rotary_kind(call.config, index)]
    call.cache.update(*call.family.keys_values(layer, halted.hidden, rotary), index)
