"""`halting(model, policy)`: the one seam between deltahalt and a Hugging Face model."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from deltahalt.engine.halted import Depth, Halted
from deltahalt.engine.handover import WANTED, Handover
from deltahalt.errors import UnsupportedError
from deltahalt.host.compat import warn_if_untested
from deltahalt.host.families import vision_family_of
from deltahalt.host.families.base import Module
from deltahalt.host.stand_in import replace
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import require_policy
from deltahalt.vision.attach import halting_vision
from deltahalt.vision.policy import VisionPolicy

REFUSED_IN_GENERATE = {
    "prefill_chunk_size": "a chunk would be taken for the whole prompt; leave it unset",
    "assistant_model": "draft tokens would be taken for the prompt; leave it out",
    "assistant_early_exit": "draft tokens would be taken for the prompt; leave it unset",
    "prompt_lookup_num_tokens": "draft tokens would be taken for the prompt; leave it unset",
    "use_cache": "every step would halt anew; leave the cache on",
    "cache_implementation": "only a dynamic cache holds layers of different lengths; leave cache_implementation unset",
}
FINE_IN_GENERATE = {
    "use_cache": (True,),
    "cache_implementation": ("dynamic", "hybrid"),
}  # the host maps hybrid to dynamic


@contextmanager
def halting(
    model: nn.Module,
    policy: AnyPolicy,
    *,
    min_prompt_tokens: int = 0,
    timed: bool = False,
    depth: Depth | None = None,
    vision: VisionPolicy | str | None = None,
) -> Iterator[Halted]:
    """Halt prompt tokens in every prefill of `model` inside the `with` block; decoding stays as it is.

    model: a Hugging Face causal language model, or vision-language model, of a known family. policy: a Policy or
    Progressive; `deltahalt.halting` takes its text, too.
    min_prompt_tokens: shorter prompts stay whole. timed: measure each prefill's seconds, waiting for the
    device. depth: the layers that generated token number i runs through, given i and how many there are; None for all.
    vision: what leaves fewer visual tokens inside the ViT as well, as in `deltahalt.vision.halting_vision`.

    Yields the Halted model, whose `report` tells what the latest prefill did, and `vision_report` what the ViT did. On
    any exit the model is as before.
    Raises UnsupportedError for a model that cannot be halted, and PolicyError for a policy that does not fit it. Warns
    once if transformers is newer than every tested version.
    """
    warn_if_untested()
    decoder = find_decoder(model)
    base = find_base(model, decoder)
    handover = Handover(vision_family_of(base.config)) if base is not decoder else None
    require_policy(policy)
    with ExitStack() as undo:
        halted = Halted(
            decoder,
            policy,
            min_prompt_tokens=min_prompt_tokens,
            timed=timed,
            depth=depth,
            handover=handover,
            tower=None if vision is None else undo.enter_context(halting_vision(model, vision)),
        )
        # An accelerate hook has put a wrapper in `forward`, which calls `_old_forward`: keep the wrapper.
        replace(decoder, "_old_forward" if hasattr(decoder, "_hf_hook") else "forward", halted.forward, undo)
        if handover is not None:
            _listen(base, handover, undo)
        if model is not base:
            undo.callback(model.register_forward_pre_hook(_pass_logits_down, with_kwargs=True).remove)
        if callable(generate := getattr(model, "generate", None)):
            replace(model, "generate", _checked(generate), undo)
        yield halted


def find_decoder(model: Module) -> Module:
    """The part of a host's model that runs the layers. Raises UnsupportedError where tokens cannot be halted in it."""
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise UnsupportedError("this model is compiled as a whole: compile its layers in place of it")
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if decoder is None or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise UnsupportedError(f"{type(model).__name__} has no decoder to halt tokens in: use a causal language model")
    for name in ("forward", "_old_forward"):
        if isinstance(getattr(decoder.__dict__.get(name), "__self__", None), Halted):
            raise UnsupportedError("this model is halting already: leave the other `with halting(...)` block first")
    return decoder


def find_base(model: Module, decoder: Module) -> Module:
    """The part of a vision-language model that puts image features among the embeddings; else the decoder itself."""
    parent = next((module for module in model.modules() if decoder in module.children()), decoder)
    config = getattr(parent, "config", decoder.config)
    return decoder if config.model_type == decoder.config.model_type else parent


def sees_images(model: Module, decoder: Module) -> bool:
    """Whether the model is a vision-language model, which gives its decoder visual tokens, too."""
    return find_base(model, decoder) is not decoder


def _listen(base: Module, handover: Handover, undo: ExitStack) -> None:
    """Have what the base model knows and its decoder needs collected in `handover`."""
    replace(base, handover.family.finder(base), handover.listening(base), undo)
    undo.callback(base.register_forward_pre_hook(handover.enter, with_kwargs=True).remove)
    undo.callback(base.register_forward_hook(handover.leave, always_call=True).remove)


def _pass_logits_down(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the outer model: tell the decoder how many logits are wanted, and refuse a loss."""
    if kwargs.get("labels") is not None:
        raise UnsupportedError("labels are not supported: halted tokens have no logits to take a loss of")
    wanted = kwargs.get("logits_to_keep", 0)
    return args, kwargs | {WANTED: wanted if isinstance(wanted, int) else 0}


def _checked(generate: Callable[..., Any]) -> Callable[..., Any]:
    """`generate` that refuses what would call the decoder in pieces or with tokens that are no prompt."""

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(generate).bind_partial(*args, **kwargs).arguments
        given = given.pop("kwargs", {}) | given
        config = given.get("generation_config") or generate.__self__.generation_config  # type: ignore[attr-defined]
        settings = {name: given.get(name, getattr(config, name, None)) for name in REFUSED_IN_GENERATE}
        for name, value in settings.items():
            if value is not None and value not in FINE_IN_GENERATE.get(name, ()):
                shown = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
                advice = REFUSED_IN_GENERATE[name]
                raise UnsupportedError(f"generate({name}={shown}) is not supported with halting: {advice}")
        return generate(*args, **kwargs)

    return checked
