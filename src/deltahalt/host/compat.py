"""Where the transformers versions that deltahalt runs on differ, and what is refused of a version not known yet."""

import inspect
import warnings
from collections.abc import Collection
from functools import cache
from importlib import import_module
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPast

from deltahalt.errors import InputError, UnsupportedError, UntestedVersionWarning

OLDEST_TESTED, NEWEST_TESTED = "5.2.0", "5.24.0"  # the only record of the newest version that the tests ran on

# Name of the K/V cache among the arguments and outputs of the host's models; 5.24 renamed it.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
OLDER_CACHE = "past_key_values"  # which newer versions accept too, for the time being

_LAYER_ARGUMENTS = ("attention_mask", "position_embeddings", CACHE)  # what the engine gives a layer and its attention


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
    """The error for something of the installed transformers that the engine does not know."""
    return UnsupportedError(
        f"{what} (this is transformers {transformers.__version__}; deltahalt is tested with {OLDEST_TESTED} to "
        f"{NEWEST_TESTED})"
    )


def refuse_unknown_host(decoder: Any) -> None:
    """Raise UnsupportedError where the decoder, or a part of it, names its arguments as no tested version does."""
    _refuse_unknown_names(decoder, ("input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", "use_cache"))
    layer = decoder.layers[0]
    for part in (layer, layer.self_attn):
        _refuse_unknown_names(part, ("hidden_states", *_LAYER_ARGUMENTS, "position_ids", "use_cache"), _LAYER_ARGUMENTS)


def _refuse_unknown_names(part: Any, given: Collection[str], taken: Collection[str] | None = None) -> None:
    """Refuse a part whose forward does not name all of `taken`, or requires more than is `given`."""
    parameters = list(inspect.signature(type(part).forward).parameters.values())[1:]
    named = {each.name: each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    if not named:
        return  # a wrapper that passes everything on: what it wraps is not known
    for name in given if taken is None else taken:
        if name not in named:
            raise version_error(f"{type(part).__name__} takes no argument `{name}`")
    for name, each in named.items():
        if each.default is each.empty and name not in given:
            raise version_error(f"{type(part).__name__} requires an argument `{name}`")


def decoder_arguments(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names of the host's decoder, the cache by the name of `CACHE`."""
    names = list(inspect.signature(type(decoder).forward).parameters)[1:]
    if len(args) > len(names):
        raise InputError(f"{type(decoder).__name__} takes {len(names)} arguments by position; {len(args)} were given")
    arguments = dict(zip(names, args, strict=False))
    for name in arguments.keys() & kwargs.keys():
        raise InputError(f"{type(decoder).__name__} was given {name} twice: by position and by name")
    arguments |= kwargs
    if OLDER_CACHE != CACHE and OLDER_CACHE in arguments:
        older = arguments.pop(OLDER_CACHE)
        if arguments.get(CACHE) is None:
            arguments[CACHE] = older
        elif older is not None and older is not arguments[CACHE]:
            raise InputError(f"give the cache once, as {CACHE}; {OLDER_CACHE} is its older name")
    return arguments


@cache
def _host_has(model_type: str, name: str) -> bool:
    """Whether the host's code for a model has `name`; loaded when asked, since it takes a second."""
    return hasattr(import_module(f"transformers.models.{model_type}.modeling_{model_type}"), name)


def blocks_cross_windows() -> bool:
    """Whether an image's tokens see each other beyond a sliding window, too, as in older versions of Gemma 3."""
    return not _host_has("gemma3", "create_masks_for_vision_model")


def unpacked_gguf() -> dict[str, Any]:
    """What makes `from_pretrained` turn the weights of a GGUF file into plain tensors."""
    # Newer versions otherwise use packed layers, and another attention, wherever they find kernels for them.
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


def decoder_output(hidden: torch.Tensor, cache: Any) -> BaseModelOutputWithPast:
    """What the host's decoder returns."""
    fields: dict[str, Any] = {"last_hidden_state": hidden, CACHE: cache}
    return BaseModelOutputWithPast(**fields)


def layer_output(output: Any) -> torch.Tensor:
    """Hidden states that a decoder layer of the host returned. Raises UnsupportedError for any other output."""
    # Older vision-language models return them in a tuple.
    hidden = output[0] if isinstance(output, tuple) and len(output) == 1 else output
    if not isinstance(hidden, torch.Tensor):
        raise version_error(f"a decoder layer returned {_shown(output)} in place of hidden states")
    return hidden


def attention_output(output: Any) -> torch.Tensor:
    """What a layer's attention module of the host returned, its weights apart. Raises as `layer_output`."""
    if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], torch.Tensor)):
        raise version_error(f"an attention module returned {_shown(output)} in place of (output, weights)")
    return output[0]


def _shown(output: Any) -> str:
    if isinstance(output, tuple):
        return f"({', '.join(type(part).__name__ for part in output)})"
    return type(output).__name__


def bare_tower(tower: Any) -> Any:
    """The module that runs the blocks of a CLIP or SigLIP tower."""
    # Older versions wrap it in a module that only passes things on.
    return getattr(tower, "vision_model", tower)


def merged_mrope(rotary: tuple[torch.Tensor, ...], config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of M-RoPE with the sections of the three planes side by side, [B, n, d]."""
    cos, sin = rotary
    if cos.ndim == 3:
        return cos, sin
    # Older versions leave [3, B, n, d] for each layer to merge.
    sections = 2 * config.rope_parameters["mrope_section"]
    merged = [
        torch.cat([part[plane % 3] for plane, part in enumerate(table.split(sections, dim=-1))], dim=-1)
        for table in (cos, sin)
    ]
    return merged[0], merged[1]


def mrope_of_layer(rotary: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `merged_mrope` made, in the form that a layer of the host takes."""
    if _host_has("qwen2_vl", "apply_multimodal_rotary_pos_emb"):
        return rotary[0].expand(3, *rotary[0].shape), rotary[1].expand(3, *rotary[1].shape)
    return rotary
