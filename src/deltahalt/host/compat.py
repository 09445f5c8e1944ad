"""The differences between supported transformers versions, and checks that refuse an unknown version's interface."""

import inspect
import warnings
from collections.abc import Callable, Collection
from functools import cache
from importlib import import_module
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPast

from deltahalt.errors import InputError, UnsupportedError, UntestedVersionWarning

OLDEST_TESTED, NEWEST_TESTED = "5.2.0", "5.24.0"  # the newest version that the tests ran on is stated here only

# Name of the K/V cache among the arguments and outputs of the host's models; 5.24 renamed it.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
OLDER_CACHE = "past_key_values"  # newer versions still accept this name

# Arguments that the engine passes to a layer and to its attention.
_LAYER_ARGUMENTS = ("attention_mask", "position_embeddings", CACHE)


@cache
def warn_if_untested() -> None:
    """Warn, once in a process, when the installed transformers is newer than the newest one tested."""
    if Version(transformers.__version__) > Version(NEWEST_TESTED):
        warnings.warn(
            f"transformers {transformers.__version__} is newer than {NEWEST_TESTED}, the newest version that deltahalt "
            f"was tested with. If results look wrong: pip install transformers=={NEWEST_TESTED}",
            UntestedVersionWarning,
            stacklevel=4,  # the line of `with halting(...)`
        )


def version_error(what: str) -> UnsupportedError:
    """Return the error for an interface of the installed transformers that the engine does not know."""
    return UnsupportedError(
        f"{what} (this is transformers {transformers.__version__}; deltahalt is tested with {OLDEST_TESTED} to "
        f"{NEWEST_TESTED})"
    )


def refuse_unknown_host(decoder: Any) -> None:
    """Raise UnsupportedError if the arguments of the decoder or its parts differ from those of all tested versions."""
    _refuse_unknown_names(decoder, ("input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", "use_cache"))
    layer = decoder.layers[0]
    for part in (layer, layer.self_attn):
        _refuse_unknown_names(part, ("hidden_states", *_LAYER_ARGUMENTS, "position_ids", "use_cache"), _LAYER_ARGUMENTS)


def _refuse_unknown_names(part: Any, given: Collection[str], taken: Collection[str] | None = None) -> None:
    """Refuse a part whose forward lacks one of `taken` (default: `given`), or requires an argument not in `given`."""
    parameters = list(inspect.signature(type(part).forward).parameters.values())[1:]
    named = {each.name: each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    if not named:
        return  # a wrapper that passes all arguments on, so the wrapped signature is not known
    for name in given if taken is None else taken:
        if name not in named:
            raise version_error(f"{type(part).__name__} takes no argument `{name}`")
    for name, each in named.items():
        if each.default is each.empty and name not in given:
            raise version_error(f"{type(part).__name__} requires an argument `{name}`")


def decoder_arguments(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by their names in the host's decoder, with the cache under the name `CACHE`."""
    names = _argument_names(type(decoder).forward)
    if len(args) > len(names):
        raise InputError(
            f"{type(decoder).__name__} was given {len(args)} positional arguments, of {len(names)}: pass them by name"
        )
    arguments = dict(zip(names, args, strict=False))
    for name in arguments.keys() & kwargs.keys():
        raise InputError(f"{type(decoder).__name__} was given {name} twice, by position and by name: leave one out")
    arguments |= kwargs
    if OLDER_CACHE != CACHE and OLDER_CACHE in arguments:
        older = arguments.pop(OLDER_CACHE)
        if arguments.get(CACHE) is None:
            arguments[CACHE] = older
        elif older is not None and older is not arguments[CACHE]:
            raise InputError(
                f"{CACHE} and {OLDER_CACHE} (its older name) are two different caches: give the cache once, as {CACHE}"
            )
    return arguments


@cache
def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a forward's arguments without `self`. It is cached, since every generated token needs it."""
    return tuple(inspect.signature(forward).parameters)[1:]


@cache
def _host_has(model_type: str, name: str) -> bool:
    """Return whether the host's code for a model defines `name`. The import takes a second, so it runs when needed."""
    return hasattr(import_module(f"transformers.models.{model_type}.modeling_{model_type}"), name)


def blocks_cross_windows() -> bool:
    """Return whether an image's tokens attend to each other beyond a sliding window, as in older Gemma 3 code."""
    return not _host_has("gemma3", "create_masks_for_vision_model")


def unpacked_gguf() -> dict[str, Any]:
    """Return options with which `from_pretrained` converts the weights of a GGUF file to plain tensors."""
    # Without them, newer versions use packed layers and another attention if kernels for these are installed.
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


def decoder_output(hidden: torch.Tensor, cache: Any) -> BaseModelOutputWithPast:
    """Return the output of the host's decoder for these final hidden states and this cache."""
    fields: dict[str, Any] = {"last_hidden_state": hidden, CACHE: cache}
    return BaseModelOutputWithPast(**fields)


def fill_cache_layer(layer: Any, keys: torch.Tensor, values: torch.Tensor, added: int) -> None:
    """Put keys and values [B, kv_heads, entries, d] into a layer of the host's cache, in place of its own.

    added: how many of the last entries are new. A layer that is sliding drops those outside of its window.
    """
    if layer.is_sliding:
        layer.cumulative_length += added
        if not getattr(layer, "record_past", False):  # newer versions can postpone this until the next crop
            keys, values = (part[..., 1 - layer.sliding_window :, :].contiguous() for part in (keys, values))
    layer.keys, layer.values = keys, values


def layer_output(output: Any) -> torch.Tensor:
    """Return the hidden states in a decoder layer's output. Raises UnsupportedError for an unknown form of output."""
    # In older versions, vision-language models return them in a tuple.
    hidden = output[0] if isinstance(output, tuple) and len(output) == 1 else output
    if not isinstance(hidden, torch.Tensor):
        raise version_error(f"a decoder layer returned {_shown(output)} instead of hidden states")
    return hidden


def attention_output(output: Any) -> torch.Tensor:
    """Return the hidden states in an attention module's output. Raises UnsupportedError as `layer_output` does."""
    if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], torch.Tensor)):
        raise version_error(f"an attention module returned {_shown(output)} instead of (output, weights)")
    return output[0]


def _shown(output: Any) -> str:
    if isinstance(output, tuple):
        return f"({', '.join(type(part).__name__ for part in output)})"
    return type(output).__name__


def bare_tower(tower: Any) -> Any:
    """Return the module of a CLIP or SigLIP tower that holds the blocks."""
    # Older versions wrap it in a module that only passes its arguments on.
    return getattr(tower, "vision_model", tower)


def merged_mrope(rotary: tuple[torch.Tensor, ...], config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of M-RoPE [B, n, d], with the sections of the three position axes concatenated."""
    cos, sin = rotary
    if cos.ndim == 3:
        return cos, sin
    # In older versions they are [3, B, n, d], and each layer merges them.
    sections = 2 * config.rope_parameters["mrope_section"]
    merged = [
        torch.cat([part[plane % 3] for plane, part in enumerate(table.split(sections, dim=-1))], dim=-1)
        for table in (cos, sin)
    ]
    return merged[0], merged[1]


def mrope_of_layer(rotary: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of `merged_mrope` in the form that a layer of the host takes."""
    if _host_has("qwen2_vl", "apply_multimodal_rotary_pos_emb"):
        return rotary[0].expand(3, *rotary[0].shape), rotary[1].expand(3, *rotary[1].shape)
    return rotary
