"""K and V of tokens that do not run through a layer."""

from deltahalt.engine.call import DecoderCall
from deltahalt.engine.layer_kv import LayerKV
from deltahalt.engine.pieces import pieces
from deltahalt.engine.stream import TokenStream
from deltahalt.host.families.base import Module


def store(tokens: TokenStream, index: int, layer: Module, call: DecoderCall) -> None:
    """Put K and V that layer number `index` computes from the states of `tokens` into the call's cache."""
    assert call.cache is not None  # what needs this is refused, or left out, without a cache
    held = LayerKV(call.cache, index, tokens.width, window=None)
    for piece in pieces(tokens.width, call.piece):
        part = tokens.columns(piece.start, piece.stop)
        rotary = call.host.rotary_of(index, part.rotary)
        held.update(*call.host.family.keys_values(layer, part.hidden, rotary), index)
    held.hand_over()
