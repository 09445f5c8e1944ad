"""One call of the decoder: its arguments checked and turned into a TokenStream, and what every layer is given."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.engine.backends import backend
from deltahalt.engine.cache import HaltedCache, Segment, segment_of
from deltahalt.engine.masks import ATTENTION, attention_mask
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.compat import CACHE, version_error
from deltahalt.host.families.base import Family, Module
from deltahalt.kinds import DROPPED, TEXT
from deltahalt.policies.base import Policy

# What hosts pass to a decoder that does nothing with it: bookkeeping of older versions, and the outer model's own.
IGNORED = {"cache_position", "logits_to_keep"}
Scored = dict[tuple[int, int, Policy], torch.Tensor]  # by layer, row and `Policy.scoring`: [n]
Attention = tuple[torch.Tensor | None, AbstractContextManager[object]]  # the mask, and where it is to be used


@dataclass
class Call:
    """What stays the same while one call runs through the layers.

    past: what the cache held before, by run of layers; empty in a prefill. prompts: tokens in each row's prompt, in a
    prefill. behind: so many last columns of a prefill come after its prompts: they run along, no policy sees them and
    none halts. width: columns of this call's input. seen: columns before it. own: what the family's `after_layer` is
    given. kinds: [B, width] what each token is (see `deltahalt.kinds`); None
    where all are text. dropped: whether some were gone before the first layer. blocks:
    [B, width] number of the block within which a token sees what comes after it too; -1 for none. embeds: [B, width, D]
    what went into the first layer, where there are `kinds`. scored: where many runs begin with the same states, what
    their policies have scored of whole prompts.
    """

    config: Any
    layers: Sequence[Module]
    norm: Module
    family: Family
    cache: DynamicCache | None
    use_cache: bool
    past: list[Segment]
    prompts: tuple[int, ...]
    width: int
    seen: int
    windows: tuple[int | None, ...]
    own: dict[str, Any]
    kinds: torch.Tensor | None
    dropped: bool
    blocks: torch.Tensor | None
    embeds: torch.Tensor | None
    behind: int = 0
    scored: Scored | None = None
    attention: dict[tuple[int, int | None], Attention] = field(default_factory=dict)  # by run of layers, and window

    def layer_inputs(
        self, layer: int, stream: TokenStream, trace: Trace, alike: int | None
    ) -> tuple[dict[str, Any], AbstractContextManager[object]]:
        """Keyword arguments for the host's layer, and the context to run it in.

        alike: how many layers, itself included, attend alike; None where all layers run on the same tokens.
        """
        rotary = stream.rotary[self.family.rotary_kind(self.config, layer)]
        mask, around = self._attention(layer, stream, trace, alike)
        inputs = {
            "attention_mask": mask,
            "position_embeddings": self.family.for_layer(rotary),
            "position_ids": None,  # the host would read gaps in them as packed sequences
            CACHE: self.cache,
            "use_cache": self.use_cache,
        }
        return inputs, around

    def after_layer(self, layer: int, stream: TokenStream) -> TokenStream:
        """The tokens as the next layer finds them."""
        if not self.own:
            return stream
        return stream.advance(self.family.after_layer(layer, stream.hidden, stream.slots - self.seen, **self.own))

    def positions(self, stream: TokenStream, row: int) -> torch.Tensor:
        """Where in the row's prompt its tokens of `stream` stand, [n]."""
        return stream.slots[row, stream.row(row)] - self.columns(row).start

    def columns(self, row: int) -> slice:
        """The columns of the row's prompt."""
        return slice(self.width - self.behind - self.prompts[row], self.width - self.behind)

    def prompts_of(self, stream: TokenStream) -> TokenStream:
        """The stream without what comes after the prompts."""
        return stream.until(stream.width - self.behind) if self.behind else stream

    def prompt_kinds(self, row: int) -> torch.Tensor | None:
        """What each token of the row's prompt is, [prompt]; None in a batch of text."""
        return None if self.kinds is None else self.kinds[row, self.columns(row)]

    def refuse_flash_window(self, halted_from: int) -> None:
        """Raise UnsupportedError if a layer from `halted_from` on has a window that FlashAttention would misplace."""
        reached = any(window and window <= self.seen + self.width for window in self.windows[halted_from:])
        if reached and self.config._attn_implementation.startswith("flash"):
            raise UnsupportedError(
                "FlashAttention measures a sliding window over the kept tokens, not over the prompt: load the model "
                'with attn_implementation="sdpa" to halt prompts longer than its window'
            )

    def _attention(self, layer: int, stream: TokenStream, trace: Trace, alike: int | None) -> Attention:
        window = self.windows[layer]
        if window is not None and self.seen + self.width < window:
            window = None
        segment = segment_of(self.past or trace.segments, layer)
        key = (segment.start, window)
        if key not in self.attention:
            past = segment.slots[:, -self._stored(layer) :] if self.past else stream.slots[:, :0]
            parts = (*(served.halted for served in trace.served), stream)
            keys = torch.cat([past, *(part.slots for part in parts)], dim=1)
            mask = attention_mask(
                stream.slots,
                keys,
                padded=any(part.padded for part in parts) or (bool(self.past) and segment.padded),
                window=window,
                attention=self.config._attn_implementation,
                dtype=stream.hidden.dtype,
                block_of=None if self.blocks is None else self._block_of,
            )
            around: AbstractContextManager[object] = nullcontext()
            if alike is not None:
                pairs = alike * self.config.num_attention_heads * stream.slots.numel() * keys.shape[1]
                around = backend(pairs, masked=mask is not None)
            self.attention[key] = mask, around
        return self.attention[key]

    def _block_of(self, slots: torch.Tensor) -> torch.Tensor:
        """The block of the tokens at `slots` [B, n]; -1 for none, and for tokens of earlier calls."""
        assert self.blocks is not None
        columns = slots - self.seen
        return self.blocks.to(slots.device).gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)

    def _stored(self, layer: int) -> int:
        """Entries in the layer's cache: a sliding layer lets go of those that no query will reach."""
        cache: Any = self.cache
        stored: int = cache.layers[layer].keys.shape[-2]
        return stored


def prepare(
    decoder: Module,
    family: Family,
    *,
    freeze: bool,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: DynamicCache | None = None,
    inputs_embeds: torch.Tensor | None = None,
    use_cache: bool | None = None,
    kinds: torch.Tensor | None = None,
    blocks: torch.Tensor | None = None,
    **extra: Any,
) -> tuple[TokenStream, Call]:
    """Check the arguments of a call to the host's decoder and set it up.

    freeze: whether halted tokens go on serving K and V. kinds, blocks: as in Call. Visual tokens that are NaN are
    dropped here, before the first layer.
    Raises InputError for input that cannot be run and UnsupportedError for features that halting cannot serve.
    """
    config = decoder.config
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give either input_ids or inputs_embeds")
    if input_ids is not None and (input_ids.ndim != 2 or input_ids.is_floating_point()):
        raise InputError("give input_ids as whole numbers, [batch, tokens]")
    hidden = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    use_cache = bool(config.use_cache if use_cache is None else use_cache)
    cache = DynamicCache(config=config) if use_cache and past_key_values is None else past_key_values
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise UnsupportedError("gradient checkpointing recomputes layers on other tokens: call model.eval() first")
    own = {name: extra.pop(name) for name in family.own if name in extra}
    _refuse(config, cache, attention_mask, extra)
    if freeze and (cache is None or config._attn_implementation.startswith("flash")):
        raise UnsupportedError('halted_kv="frozen" needs a cache, and sdpa or eager attention')

    seen, width = cache.get_seq_length() if cache is not None else 0, hidden.shape[1]
    if width == 0:
        raise InputError("the prompt is empty: give at least one token")
    slots, past, lengths = _columns(attention_mask, len(hidden), seen, width, hidden.device)
    if position_ids is None:
        position_ids = torch.arange(seen, seen + width, device=hidden.device)[None]
    elif attention_mask is None and _reads_packing(config, cache, len(hidden)):
        _refuse_packing(family.packing(position_ids))
    stream = TokenStream(hidden, slots, lengths, family.rotary(decoder, hidden, position_ids))
    if kinds is not None:
        kinds = kinds.masked_fill((kinds > TEXT) & hidden[..., 0].isnan(), DROPPED)
    dropped = kinds is not None and bool((kinds == DROPPED).any())
    call = Call(
        config=config,
        layers=decoder.layers,
        norm=decoder.norm,
        family=family,
        cache=cache,
        use_cache=use_cache,
        past=cache.segments if isinstance(cache, HaltedCache) else past,
        prompts=() if seen else lengths,
        width=width,
        seen=seen,
        windows=family.windows(config),
        own=own,
        kinds=kinds,
        dropped=dropped,
        blocks=None if blocks is None else blocks[:, -width:],  # some hosts name those of earlier calls too
        embeds=None if kinds is None else hidden,
    )
    return _without_dropped(stream, kinds) if dropped and kinds is not None else stream, call


def _without_dropped(stream: TokenStream, kinds: torch.Tensor) -> TokenStream:
    """The stream without tokens of `kinds` [B, n] DROPPED. Raises InputError where a row ends in one."""
    if (kinds[:, -1] == DROPPED).any():
        raise InputError("a prompt ends in a visual token that was dropped: put text behind the image")
    return stream.keep([(kinds[row, stream.row(row)] != DROPPED).nonzero().squeeze(1) for row in range(len(kinds))])


def _columns(
    attention_mask: torch.Tensor | None, rows: int, seen: int, width: int, device: torch.device
) -> tuple[torch.Tensor, list[Segment], tuple[int, ...]]:
    """Slots [B, width] of new tokens, the segment of the `seen` columns before them, and how many each row has."""
    slots = torch.arange(seen + width, device=device).expand(rows, -1)
    lengths, padded_before = (width,) * rows, False
    if attention_mask is not None:
        real = _check_mask(attention_mask, rows, seen + width).to(device)
        if not real.all():
            lengths, slots = _left_padded(real[:, seen:]), slots.masked_fill(~real, -1)
            padded_before = not real[:, :seen].all()
    past = [Segment(0, slots[:, :seen], padded_before)] if seen else []
    return slots[:, seen:], past, lengths


def _refuse_packing(positions: torch.Tensor | None) -> None:
    if positions is not None and (positions.diff(dim=-1) != 1).any():
        raise UnsupportedError("position_ids with gaps mean packed sequences: pass one sequence a row, left-padded")


def _reads_packing(config: Any, cache: DynamicCache | None, rows: int) -> bool:
    """Whether the host would take gaps in position_ids for the borders of packed sequences."""
    return cache is None or (rows == 1 and config._attn_implementation.startswith("flash"))


def _refuse(config: Any, cache: Any, attention_mask: Any, extra: dict[str, Any]) -> None:
    if config._attn_implementation not in ATTENTION:
        raise UnsupportedError(
            f"attn_implementation={config._attn_implementation!r} is not supported; use one of {', '.join(ATTENTION)}"
        )
    if cache is not None and type(cache) not in (DynamicCache, HaltedCache):
        raise UnsupportedError(
            f"halting cannot use a {type(cache).__name__}: pass a DynamicCache, or none "
            "(in generate, leave cache_implementation unset)"
        )
    if cache is not None and cache.offloading:
        raise UnsupportedError("halting cannot use an offloaded cache: pass a plain DynamicCache")
    if attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        raise UnsupportedError("give attention_mask as [batch, tokens], 1 for a token and 0 for padding")
    for flag in ("output_hidden_states", "output_attentions"):
        value = extra.pop(flag, None)  # newer versions select hidden states by numbers, 0 among them
        if (value is not None and value is not False) or getattr(config, flag, False):
            raise UnsupportedError(f"{flag} is not supported: deeper layers hold fewer tokens. Leave it off")
    if extra.pop("is_causal", None) is False:
        raise UnsupportedError("is_causal=False is not supported: halting is for causal decoders. Leave it out")
    for name in extra.keys() - IGNORED:
        if extra[name] is not None:
            raise version_error(f"{name} is not supported with halting: the engine does not know it. Leave it out")


def _check_mask(attention_mask: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    if tuple(attention_mask.shape) != (rows, columns):
        raise InputError(
            f"attention_mask is {list(attention_mask.shape)}, but cache and input hold {rows} rows of {columns} tokens"
        )
    return attention_mask.bool()


def _left_padded(real: torch.Tensor) -> tuple[int, ...]:
    """Tokens in each row of `real` [B, n]; InputError unless padding, if any, is on the left and leaves a token."""
    if not real[:, -1].all():
        row = int((~real[:, -1]).nonzero()[0])
        state = "is all padding" if not real[row].any() else "is padded on the right"
        raise InputError(f"row {row} of the batch {state}: pad on the left, and give every row at least one token")
    if (real[:, 1:] < real[:, :-1]).any():
        raise InputError("attention_mask masks tokens between others: only padding on the left is supported")
    return tuple(real.sum(dim=1).tolist())
