"""`halting(model, policy)`: the one seam between deltahalt and a Hugging Face model."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from deltahalt.engine.halted import Depth, Halted, Tower
from deltahalt.engine.handover import finding, through_base, through_model
from deltahalt.engine.question import Question
from deltahalt.engine.recorded.graph import generating
from deltahalt.errors import PolicyError, UnhaltedCallWarning, UnsupportedError
from deltahalt.host.blocks import Answer, Block, Place, forward_of, is_halting, kept_open
from deltahalt.host.compat import warn_if_untested
from deltahalt.host.families import known_families, vision_family_of
from deltahalt.host.families.base import Family, Module
from deltahalt.policies.base import AnyPolicy
from deltahalt.policies.text import format_policy, require_policy

REFUSED_IN_GENERATE = {
    "prefill_chunk_size": "a chunk would be taken for the whole prompt; leave it unset",
    "assistant_model": "draft tokens would be taken for the prompt; leave it out",
    "assistant_early_exit": "draft tokens would be taken for the prompt; leave it unset",
    "prompt_lookup_num_tokens": "draft tokens would be taken for the prompt; leave it unset",
    "use_cache": "without a cache every generated token would rerun and halt the prompt again; leave use_cache on",
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
    tower: Tower | None = None,
    question: Question | None = None,
    piece_tokens: int | None = None,
    decode_graphs: bool | None = None,
    fused_kernels: bool | None = None,
) -> Iterator[Halted]:
    """Halt prompt tokens in every prefill of `model` inside the `with` block.

    policy: a Policy or Progressive; `deltahalt.halting` takes its text, too. min_prompt_tokens: shorter prompts stay
    whole. timed: measure the seconds of each prefill, which waits for the device. depth: the layers that run generated
    token number i, given i and the number of layers; None for all. tower: drops visual tokens before the decoder, and
    marks them as NaN. question: finds the question in each prompt, for policies that read it.
    piece_tokens: the number of prompt tokens that run through a layer at once; None for the default, by length.
    decode_graphs: whether generated tokens run as CUDA graphs (see `Decoding.want`).
    fused_kernels: whether norms, rotary embedding and gated activations of a prefill run as one kernel each (see
    `host.fused`); None for prefills in which tokens halt, on a GPU.

    Yields the Halted model, whose `report` describes the latest prefill. On any exit the model is as before.
    Raises UnsupportedError for a model that cannot be halted, and PolicyError for a policy that does not fit it. Warns
    once if transformers is newer than every tested version.
    """
    warn_if_untested()
    decoder = find_decoder(model)
    base = find_base(model, decoder)
    require_policy(policy)
    if question is not None and not any(stage.reads_question for stage in policy.stages):
        raise PolicyError(
            f"{format_policy(policy)} does not read the question: leave question out, or name a policy that reads it, "
            "such as both-ends"
        )
    halted = Halted(
        model,
        decoder,
        policy,
        min_prompt_tokens=min_prompt_tokens,
        timed=timed,
        depth=depth,
        sees_images=base is not decoder,
        tower=tower,
        question=question,
        piece_tokens=piece_tokens,
        decode_graphs=decode_graphs,
        fused_kernels=fused_kernels,
    )
    answers = {} if tower is None else dict(tower.places)
    halted.block = Block(_places(model, base, halted) | answers, marks=None if tower is None else base)
    try:
        with halted.block.opened():
            yield halted
    finally:
        halted.decoding.forget()
    if halted.block.missed and not halted.ran:
        warnings.warn(
            "nothing halted in this block, but the model ran in another thread, which has no part in it: start it with "
            "halted.generate instead of model.generate, or with contextvars.copy_context().run",
            UnhaltedCallWarning,
            stacklevel=3,
        )


def _places(model: Module, base: Module, halted: Halted) -> dict[Place, Answer]:
    """What answers in the model for a block."""
    decoder = halted.host.module
    places: dict[Place, Answer] = {forward_of(decoder): halted.forward}
    if base is not decoder:
        family = vision_family_of(base.config)
        places[base, family.finder(base)] = finding(base, family)
        places[forward_of(base)] = through_base(base, family)
    if model is not base:
        places[forward_of(model)] = through_model(model)
    if callable(getattr(model, "generate", None)):
        places[model, "generate"] = partial(_generate, halted)
    return places


def find_decoder(model: Module) -> Module:
    """The part of a host's model that runs the layers. Raises UnsupportedError where tokens cannot be halted in it."""
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise UnsupportedError(
            "halting needs the layers of this model, which is compiled as a whole: compile each layer"
        )
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if decoder is None or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        if type(model).__module__.startswith("sentence_transformers."):
            raise UnsupportedError(
                f"{type(model).__name__} is a model of sentence-transformers: call "
                "deltahalt.integrations.sentence_transformers.halting in place of this function"
            )
        known = ", ".join(sorted(known_families(Family)))
        raise UnsupportedError(
            f"{type(model).__name__} has no decoder to halt tokens in: use a causal language model of a known family; "
            f"known: {known}"
        )
    if is_halting(decoder):
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


def _generate(halted: Halted, _: Block, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`generate` that refuses to call the decoder in pieces or with tokens that are not of the prompt."""
    given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
    given = given.pop("kwargs", {}) | given
    config = given.get("generation_config") or original.__self__.generation_config  # type: ignore[attr-defined]
    settings = {name: given.get(name, getattr(config, name, None)) for name in REFUSED_IN_GENERATE}
    for name, value in settings.items():
        if value is not None and value not in FINE_IN_GENERATE.get(name, ()):
            shown = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            advice = REFUSED_IN_GENERATE[name]
            raise UnsupportedError(f"generate({name}={shown}) is not supported with halting: {advice}")
    halted.decoding.refuse_beams(given.get("num_beams", getattr(config, "num_beams", None)))
    with kept_open(), generating():
        return original(*args, **kwargs)
