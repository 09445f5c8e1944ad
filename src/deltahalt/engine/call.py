"""One call of the decoder: its arguments checked and turned into a TokenStream, and what every layer is given."""

import sys
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import DynamicCache

from deltahalt.engine.cache import HaltedCache, Segment, cache_rows
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.layout import Layout
from deltahalt.engine.mask import ATTENTION
from deltahalt.engine.masks import Masks
from deltahalt.engine.question import Question
from deltahalt.engine.resting import Resting
from deltahalt.engine.stream import TokenStream
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.compat import version_error
from deltahalt.kinds import DROPPED, TEXT

WHOLE = sys.maxsize  # as a number of tokens in a piece: no call has more, so all its tokens run at once

# What hosts pass to a decoder that does nothing with it: bookkeeping of older versions, and the outer model's own.
IGNORED = {"cache_position", "logits_to_keep"}


@dataclass(frozen=True)
class DecoderCall:
    """One call of a host's decoder: what every layer is given beside its tokens.

    own: arguments for the family's `after_layer`. embeddings: [B, width, D] input of the first layer, where some tokens
    are not text. piece: the number of tokens that run through a layer at once. resting: halted tokens of earlier turns,
    some of which run on. exit_layer: the layer before which all tokens but the last of each row stop; None for none
    (see `deltahalt.engine.last_layer`).
    """

    host: HostDecoder
    layout: Layout
    masks: Masks
    cache: DynamicCache | None
    use_cache: bool
    own: dict[str, Any] = field(default_factory=dict)
    embeddings: torch.Tensor | None = None
    piece: int = WHOLE
    resting: Resting | None = None
    exit_layer: int | None = None

    def asked(self, question: Question, ids: torch.Tensor | None) -> "DecoderCall":
        """The call with the places of its question. ids: [B, width]. Raises InputError as `Question.positions` does."""
        places = tuple(
            question.positions(None if ids is None else ids[row, self.layout.columns(row)], tokens)
            for row, tokens in enumerate(self.layout.prompts)
        )
        return replace(self, layout=replace(self.layout, questions=places))

    def layer_inputs(self, layer: int, stream: TokenStream, mask: torch.Tensor | None) -> dict[str, Any]:
        """Keyword arguments for the host's layer."""
        return self.host.layer_inputs(layer, stream.rotary, mask, self.cache, use_cache=self.use_cache)

    def after_layer(self, layer: int, stream: TokenStream) -> TokenStream:
        """The tokens as they enter the next layer."""
        if not self.own:
            return stream
        columns = stream.slots - self.layout.seen
        return stream.advance(self.host.family.after_layer(layer, stream.hidden, columns, **self.own))


def prepare(
    host: HostDecoder,
    *,
    shortest: int = 0,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: DynamicCache | None = None,
    inputs_embeds: torch.Tensor | None = None,
    use_cache: bool | None = None,
    kinds: torch.Tensor | None = None,
    blocks: torch.Tensor | None = None,
    marks: bool = False,
    **extra: Any,
) -> tuple[TokenStream, DecoderCall]:
    """Check the arguments of a call to the host's decoder and set it up.

    shortest, kinds, blocks: as in Layout. marks: whether NaN in place of a visual token's features marks it as dropped
    by a policy in the ViT: such tokens are dropped here, before the first layer.
    Raises InputError for input that cannot be run and UnsupportedError for features that halting does not support.
    """
    config, family = host.config, host.family
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give either input_ids or inputs_embeds")
    if input_ids is not None and (input_ids.ndim != 2 or input_ids.is_floating_point()):
        raise InputError("give input_ids as whole numbers, [batch, tokens]")
    hidden = inputs_embeds if input_ids is None else host.embed(input_ids)
    assert hidden is not None
    use_cache = bool(config.use_cache if use_cache is None else use_cache)
    cache = DynamicCache(config=config) if use_cache and past_key_values is None else past_key_values
    if host.module.training and getattr(host.module, "gradient_checkpointing", False):
        raise UnsupportedError("gradient checkpointing recomputes layers on other tokens: call model.eval() first")
    own = {name: extra.pop(name) for name in family.own if name in extra}
    _refuse(config, cache, attention_mask, extra)

    seen, width = cache.get_seq_length() if cache is not None else 0, hidden.shape[1]
    if width == 0:
        raise InputError("the prompt is empty: give at least one token")
    if cache is not None and seen and (held := cache_rows(cache)) != len(hidden):
        raise InputError(
            f"the cache holds {held} row{'s' * (held != 1)} and the input has {len(hidden)}: give a cache of the same "
            "batch; for beams, call cache.batch_repeat_interleave(num_beams) first"
        )
    slots, past, lengths = _columns(attention_mask, len(hidden), seen, width, hidden.device)
    if position_ids is None:
        position_ids = torch.arange(seen, seen + width, device=hidden.device)[None]
    elif attention_mask is None and _reads_packing(config, cache, len(hidden)):
        _refuse_packing(family.packing(position_ids))
    stream = TokenStream(hidden, slots, lengths, family.rotary(host.module, hidden, position_ids))
    if kinds is not None:
        kinds = kinds.masked_fill((kinds > TEXT) & hidden[..., 0].isnan(), DROPPED)
    dropped = kinds is not None and bool((kinds == DROPPED).any())
    if dropped and not marks:
        raise InputError(
            "features of visual tokens are NaN, and no policy in the ViT has marked them: the ViT may overflow in "
            "float16; load the model in bfloat16 or float32"
        )
    layout = Layout(
        width=width,
        seen=seen,
        prompts=() if seen and width == 1 else lengths,
        end=width,
        shortest=shortest,
        kinds=kinds,
        dropped=dropped,
        blocks=None if blocks is None else blocks[:, -width:],  # some hosts name those of earlier calls too
    )
    past = cache.segments if isinstance(cache, HaltedCache) else past
    embeddings = None if kinds is None else hidden
    call = DecoderCall(host, layout, Masks(host, layout, past, cache), cache, use_cache, own, embeddings)
    return _without_dropped(stream, kinds) if dropped and kinds is not None else stream, call


def _without_dropped(stream: TokenStream, kinds: torch.Tensor) -> TokenStream:
    """The stream without tokens of `kinds` [B, n] DROPPED. Raises InputError where a row ends in one."""
    if (kinds[:, -1] == DROPPED).any():
        raise InputError("a prompt ends in a visual token that was dropped: put text after the image")
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
    return slots[:, seen:], [Segment(0, slots[:, :seen], padded_before)], lengths


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
        raise InputError(
            f"row {row} of the batch {state}: pad on the left (tokenizer.padding_side = 'left'), and give every "
            "row at least one token"
        )
    if (real[:, 1:] < real[:, :-1]).any():
        raise InputError("attention_mask has a 0 after a 1 in a row: only padding on the left is supported")
    return tuple(real.sum(dim=1).tolist())
