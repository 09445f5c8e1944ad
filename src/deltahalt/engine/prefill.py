"""Runs the decoder on one call, and notes in the cache which tokens its layers hold."""

from collections.abc import Collection, Iterable

from deltahalt.engine.cache import HaltedCache, refuse_unfilled
from deltahalt.engine.call import DecoderCall
from deltahalt.engine.decision import decide
from deltahalt.engine.decoder import run_layers
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.errors import UnsupportedError
from deltahalt.flops import ModelShape
from deltahalt.host.families.base import Module
from deltahalt.policies.base import Stage


def refuse_halted_kv(shape: ModelShape, stages: Iterable[Stage]) -> None:
    """Raise UnsupportedError if a stage keeps K/V of halted tokens in a model with sliding-window layers."""
    for stage in stages:
        if stage.halted_states is not None and any(shape.windows):
            raise UnsupportedError(
                f"{stage.policies[0].name} keeps K/V of halted tokens, which sliding-window layers do not support: "
                "choose another policy, such as max-sim"
            )


def halting_stages(stages: Iterable[Stage], stream: TokenStream, call: DecoderCall) -> tuple[Stage, ...]:
    """Those of `stages` that halt tokens of this call."""
    rows = call.layout.active_rows(stream)
    halting = tuple(stage for stage in stages if decide(stage, rows))
    for stage in halting:
        if stage.halted_states is None:
            continue
        name = stage.policies[0].name
        if call.cache is None:
            raise UnsupportedError(f"{name} keeps K/V of halted tokens, which needs a cache: leave use_cache on")
        if not stage.halted_states.in_order and call.host.attention.startswith("flash"):
            raise UnsupportedError(
                f"{name} caches K/V of halted tokens out of the prompt's order, and FlashAttention needs keys in that "
                "order: load the model with sdpa or eager attention"
            )
    return halting


def run_call(
    layers: Iterable[tuple[int, Module]],
    stages: tuple[Stage, ...],
    stream: TokenStream,
    call: DecoderCall,
    *,
    counted: bool = False,
    skipped: Collection[int] = (),
    done: TokenStream | None = None,
) -> tuple[TokenStream, Trace]:
    """Run numbered layers of the host, halting at `stages`; the cache then knows which tokens its layers hold.

    counted: the cache must count the tokens that are generated later, even if nothing was halted. skipped: the layers
    that are left out. done: generated tokens as they leave the last layer, where they have run. Returns the active
    tokens as they leave the last layer, before the final norm, and the trace of the run. Raises PolicyError for
    scores that are NaN, and UnsupportedError for a host whose layers do not fill the cache.
    """
    layers, cache, layout = list(layers), call.cache, call.layout
    if done is None:
        stream, trace = run_layers(layers, stages, stream, call)
    else:
        stream, trace = done, Trace.begin(done, dropped=False)
    if cache is not None:
        refuse_unfilled(cache, (index for index, _ in layers))
    trace.refuse_nan()
    if cache is not None and not isinstance(cache, HaltedCache) and (trace.stages or counted):
        cache = HaltedCache.adopt(cache, call.masks.past, seen=layout.seen)
    if isinstance(cache, HaltedCache):
        cache.extend(trace.segments, columns=layout.width, tail=last_columns(stages, call), skipped=skipped)
        if cache.resting is call.resting:  # else tokens of another policy rest there
            cache.resting = trace.resting or cache.resting
    return stream, trace


def last_columns(stages: Iterable[Stage], call: DecoderCall) -> int:
    """The number of the call's last columns that every layer holds."""
    return 1 if call.layout.dropped else min((stage.tail for stage in stages), default=call.layout.width)
