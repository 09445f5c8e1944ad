"""The exit before the last layer: of all tokens whose final states are not read, only K and V are computed there."""

from deltahalt.engine.call import DecoderCall
from deltahalt.engine.pieces import hooked
from deltahalt.engine.readable import Readable
from deltahalt.engine.store import store
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.host.families.base import Module
from deltahalt.host.heads import Wanted
from deltahalt.policies.base import Stage
from deltahalt.policies.halted_states import LastState


def exit_layer(stages: tuple[Stage, ...], wanted: Wanted | None, call: DecoderCall) -> int | None:
    """The last layer, if only the last token of each row has to run through it; None if all active tokens have to.

    stages: those that halt tokens of this call. wanted: what the head reads; None where it is not known. The exit is
    exact: nothing reads the other tokens' final states, and the cache gets the K and V that it would get without it.
    None where no token halts or runs on, since such a call is the host's bit for bit, and where a sliding window, an
    offloaded layer or a hook on its attention needs the layer to run on all of them.
    """
    host, last = call.host, call.host.shape.layers - 1
    fewer = bool(stages) or call.layout.dropped or call.resting is not None
    if not fewer or wanted is None or wanted.columns != 1 or call.cache is None:
        return None
    if any(stage.last >= last for stage in stages) or call.masks.window(last) is not None:
        return None
    layer = host.layers[last]
    return None if host.family.offloaded(layer) or hooked(layer.self_attn) else last


def leave(stream: TokenStream, index: int, layer: Module, call: DecoderCall, trace: Trace) -> TokenStream:
    """The last token of each row of `stream`, about to run through layer number `index`.

    The others stop here: their K and V are put into the layer's cache, and the trace notes that they stay readable.
    """
    if stream.width == 1:
        return stream
    others, last = stream.columns(0, stream.width - 1), stream.columns(stream.width - 1, stream.width)
    store(others, index, layer, call)
    trace.readable.append(Readable(others, last, LastState(in_order=True)))
    return last
