"""What a policy is shown of the layer that decides, and of deeper layers."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from deltahalt.engine.call import DecoderCall
from deltahalt.engine.pieces import joined, pieces
from deltahalt.engine.stream import TokenStream
from deltahalt.errors import UnsupportedError
from deltahalt.host.families.base import Family, Module, Rotary
from deltahalt.host.ranks import of_all_ranks
from deltahalt.policies.layer_view import LayerView


def view_layer(
    index: int,
    call: DecoderCall,
    before: TokenStream,
    update: torch.Tensor,
    after: torch.Tensor | None,
    now: torch.Tensor,
    row: int,
) -> LayerView:
    """The row's tokens at one layer, without batch or padding.

    before: the prompts' tokens as they enter it. update: [B, n, D] output of its attention; after: of the block, or
    None at the boundary inside it. now: [B, n, D] the latest states there are.
    """
    own, layer, family, layout = before.row(row), call.host.layers[index], call.host.family, call.layout
    hidden, rotary = before.hidden[row, own], _rotary(index, call, before, row)  # [n, D]
    shape = call.host.shape
    kinds = layout.prompt_kinds(row)
    view = LayerView(
        layer=index,
        prompt=layout.prompts[row],
        positions=layout.positions(before, row).to(hidden.device),
        kinds=None if kinds is None else kinds.to(hidden.device),
        embeddings=None if call.embeddings is None else call.embeddings[row, layout.columns(row)].to(hidden.device),
        question=layout.questions[row].to(hidden.device) if layout.questions else None,
        final_norm=call.host.norm,
        hidden_in=hidden,
        update=update[row, own],
        hidden_out=None if after is None else after[row, own],
        queries=lambda last: of_all_ranks(
            family.queries(layer, hidden[None, -last:], _last(rotary, last))[0], layer, shape.heads
        ),
        keys=lambda: of_all_ranks(_keys(call, layer, hidden[None], rotary)[0], layer, shape.kv_heads),
        scaling=family.scaling(layer),
        window=call.host.windows[index],
    )
    return replace(view, lookahead=partial(look_ahead, view, call, before, now[row, own], row))


def look_ahead(
    view: LayerView, call: DecoderCall, stream: TokenStream, states: torch.Tensor, row: int, window: int
) -> Iterator[LayerView]:
    """Views of the deeper layers in turn, as the row's last `window` tokens would see them if all others stayed.

    states: [n, D] of the row at `view`. Only the last tokens run through each layer; K and V of the others come from
    their present states, so a layer costs two projections of n tokens, and attention of `window` queries.
    Raises UnsupportedError for a layer whose weights are not there: accelerate brings them for its own run alone.
    """
    family, layers, shape = call.host.family, call.host.layers, call.host.shape
    others, last = states[None, :-window], states[None, -window:]
    visible: dict[int | None, torch.Tensor] = {}
    if view.hidden_out is None:  # tokens halt inside the layer: its FFN has not run
        last = family.feed_forward(layers[view.layer], last)
    reader, read = view.positions[-window:, None], view.positions
    for index in range(view.layer + 1, len(call.host.windows)):
        layer, rotary, span = layers[index], _rotary(index, call, stream, row), call.host.windows[index]
        others, last = (_beside(family, layer, part, index) for part in (others, last))
        queries = family.queries(layer, last, _last(rotary, window))  # [1, heads, window, d]
        keys, values = family.keys_values(layer, torch.cat([others, last], dim=1), rotary)  # [1, kv_heads, n, d]
        yield replace(
            view,
            layer=index,
            queries=partial(_tail, of_all_ranks(queries[0], layer, shape.heads)),
            keys=partial(of_all_ranks, keys[0], layer, shape.kv_heads),
            scaling=family.scaling(layer),
            window=span,
        )
        if span not in visible:
            visible[span] = (read <= reader) if span is None else (read <= reader) & (read > reader - span)
        update = _attend(queries, keys, values, visible[span].to(keys.device), family.scaling(layer))
        last = family.feed_forward(layer, family.add_attention(layer, last, family.output(layer, update)))


def _keys(call: DecoderCall, layer: Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Keys [1, kv_heads, n, d] of the states [1, n, D] of a row."""
    tokens, (cos, sin) = hidden.shape[1], rotary
    parts = (
        call.host.family.keys(layer, hidden[:, piece], (cos[:, piece], sin[:, piece]))
        for piece in pieces(tokens, call.piece)
    )
    return joined(parts, tokens, dim=2)


def _beside(family: Family, layer: Module, states: torch.Tensor, index: int) -> torch.Tensor:
    """`states` on the device of the layer's weights."""
    if family.offloaded(layer):
        raise UnsupportedError(f"layer {index} is offloaded, so the policy cannot look ahead at it: use ahead=0")
    return states.to(family.device(layer))


def _rotary(index: int, call: DecoderCall, stream: TokenStream, row: int) -> Rotary:
    """cos and sin [1, n, d] of the row's tokens at the layer."""
    cos, sin = stream.rotary[call.host.family.rotary_kind(call.host.config, index)]
    own, row = stream.row(row), row if len(cos) > 1 else 0
    return cos[row : row + 1, own], sin[row : row + 1, own]


def _last(rotary: Rotary, last: int) -> Rotary:
    """cos and sin of the `last` tokens."""
    cos, sin = rotary
    return cos[:, -last:], sin[:, -last:]


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scaling: float
) -> torch.Tensor:
    """What queries [1, heads, w, d] read from n tokens, where `visible` [w, n]: [1, heads, w, d].

    The heads that share a key head are rows of one query, so that no key is copied.
    """
    shared = queries.unflatten(1, (keys.shape[1], -1))  # [1, kv_heads, group, w, d]
    mask = visible.repeat(shared.shape[2], 1)
    read = F.scaled_dot_product_attention(shared.flatten(2, 3), keys, values, attn_mask=mask, scale=scaling)
    return read.unflatten(2, shared.shape[2:4]).flatten(1, 2)


def _tail(heads: torch.Tensor, last: int) -> torch.Tensor:
    return heads[:, -last:]
