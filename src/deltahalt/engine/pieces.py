"""Pieces of a prompt: how many tokens run through a layer at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from deltahalt.engine.call import WHOLE, DecoderCall
from deltahalt.engine.stream import TokenStream
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.host.families.base import Module

LONGEST_WHOLE = 32_768  # a longer prompt runs in pieces by default,
PIECE = 16_384  # tokens in each piece, which keep the matrix units of a GPU full


def check_piece_tokens(given: Any) -> int | None:
    """The number of tokens in a piece, or None for the default. Raises InputError for anything else."""
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise InputError(
            f"piece_tokens is {given!r}; give a number of tokens, 1 or more, or None for pieces of {PIECE:,} where a "
            f"prompt has more than {LONGEST_WHOLE:,}"
        )
    return given


def piece_size(given: int | None, stream: TokenStream, call: DecoderCall) -> int:
    """The number of tokens that run through a layer at once in this call.

    given: as the caller set it; None for the default, which leaves whole what cannot run in pieces. Raises
    UnsupportedError for a given number and a call that cannot run in pieces.
    """
    default = PIECE if stream.width > LONGEST_WHOLE else WHOLE
    size = default if given is None else given
    if not call.layout.prompts or stream.width <= size:
        return WHOLE
    obstacle = _obstacle(stream, call)
    if obstacle is None:
        return size
    if given is None:
        return WHOLE
    raise UnsupportedError(f"piece_tokens={given} is not supported here: {obstacle}, or leave piece_tokens out")


def _obstacle(stream: TokenStream, call: DecoderCall) -> str | None:
    """Why the call cannot run in pieces, and what to do about it; None if it can."""
    blocks = call.layout.blocks
    if blocks is not None and bool((blocks >= 0).any()):
        return "tokens of an image see later ones in this model, which may be in a later piece: leave images out"
    learned = (weight.requires_grad for weight in call.host.module.parameters())
    if torch.is_grad_enabled() and (stream.hidden.requires_grad or any(learned)):
        return "autograd cannot follow K and V that are filled piece by piece: call the model in torch.no_grad()"
    if any(hooked(layer.self_attn) for layer in call.host.layers):
        return "a hook on an attention module, such as that of a KV press, would see one piece at a time: remove it"
    return None


def hooked(part: Module) -> bool:
    """Whether a hook on a part of the host, such as that of a KV press, sees which tokens it runs on."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


def pieces(tokens: int, size: int) -> Iterator[slice]:
    """The columns of each piece of `tokens` tokens, `size` at once."""
    return (slice(begin, min(begin + size, tokens)) for begin in range(0, tokens, size))


def joined(parts: Iterable[torch.Tensor], tokens: int, dim: int = 1) -> torch.Tensor:
    """`parts`, joined along `dim` to `tokens` tokens. Each is copied as it comes, so that they never all exist."""
    whole, end = None, 0
    for part in parts:
        if part.shape[dim] == tokens:
            return part
        if whole is None:
            whole = part.new_empty(*part.shape[:dim], tokens, *part.shape[dim + 1 :])
        whole.narrow(dim, end, part.shape[dim]).copy_(part)
        end += part.shape[dim]
    assert whole is not None
    return whole


def in_pieces(function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, size: int) -> torch.Tensor:
    """What a function of single tokens makes of `states` [B, n, D], computed for `size` of them at once."""
    tokens = states.shape[1]
    return joined((function(states[:, piece]) for piece in pieces(tokens, size)), tokens)
