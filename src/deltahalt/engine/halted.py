"""A model while it is halting: what runs in place of its decoder's forward."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from deltahalt.clock import clock
from deltahalt.engine.cache import HaltedCache, cache_bytes, refuse_unfilled, untouched_on_error
from deltahalt.engine.call import Call, prepare
from deltahalt.engine.decision import decide
from deltahalt.engine.decoder import run_layers
from deltahalt.engine.handover import WANTED, Handover
from deltahalt.engine.report import Report
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.errors import InputError, PolicyError, UnsupportedError
from deltahalt.flops import ModelShape
from deltahalt.host.compat import CACHE, decoder_arguments, decoder_output, refuse_unknown_host
from deltahalt.host.families import family_of
from deltahalt.host.families.base import Module
from deltahalt.policies.base import AnyPolicy, Stage, place
from deltahalt.vision.engine import HaltedTower
from deltahalt.vision.report import VisionReport

HaltedKV = Literal["drop", "frozen"]
Depth = Callable[[int, int], Sequence[int]]  # number of a generated token, from 1; layers of the model -> those to run


def freezes(halted_kv: str, shape: ModelShape, stages: Iterable[Stage]) -> bool:
    """Whether the tokens that any stage halts go on serving K/V.

    Raises PolicyError for an unknown word, and UnsupportedError for windows where tokens of one of `stages` do.
    """
    if halted_kv not in get_args(HaltedKV):
        raise PolicyError(f"halted_kv is {halted_kv!r}; choose one of {', '.join(get_args(HaltedKV))}")
    if any(shape.windows) and (halted_kv == "frozen" or any(stage.serves_halted for stage in stages)):
        raise UnsupportedError(
            'halted_kv="frozen", single-input-kv and forecast are not supported on sliding-window layers: use "drop", '
            "and another policy"
        )
    return halted_kv == "frozen"


class Halted:
    """A model under `halting`: the decoder's forward while attached, and the report of its latest prefill."""

    def __init__(
        self,
        decoder: Module,
        policy: AnyPolicy,
        *,
        halted_kv: HaltedKV,
        min_prompt_tokens: int,
        timed: bool,
        depth: Depth | None = None,
        handover: Handover | None = None,
        tower: HaltedTower | None = None,
    ) -> None:
        config: Any = decoder.config
        self.decoder, self.policy, self.handover, self.tower = decoder, policy, handover, tower
        self.family = family_of(config)
        refuse_unknown_host(decoder)
        self.stages = place(policy, config.num_hidden_layers, vision=handover is not None)
        self.shape = ModelShape.of(config)
        self.freeze = freezes(halted_kv, self.shape, self.stages)
        self.min_prompt_tokens, self.timed, self.depth = min_prompt_tokens, timed, depth
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        """The latest prefill's Report. Raises InputError before the first."""
        if self._report is None:
            raise InputError("there is no report yet: run the model inside `with halting(...)` first")
        return self._report

    @property
    def vision_report(self) -> VisionReport:
        """What the ViT did with its latest images. Raises InputError before them, and where no policy acts there."""
        if self.tower is None:
            raise InputError(
                'no policy acts in the ViT: name one, such as halting(model, policy, vision="vision-dash")'
            )
        return self.tower.report

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Stand in for the decoder's forward, with the same arguments.

        After a halting prefill, last_hidden_state [B, T, D] holds NaN for halted tokens. Raises what
        `deltahalt.engine.call.prepare` and the policy raise.
        """
        begin = clock() if self.timed else None
        kwargs |= self.handover.take() if self.handover else {}
        wanted = kwargs.pop(WANTED, None)
        arguments = decoder_arguments(self.decoder, args, kwargs)
        as_tuple = arguments.pop("return_dict", None) is False
        arguments["past_key_values"] = arguments.pop(CACHE, None)
        stream, call = prepare(self.decoder, self.family, freeze=self.freeze, **arguments)
        stages = tuple(stage for stage in self.stages if decide(stage, call, stream, self.min_prompt_tokens))
        if call.cache is None and any(stage.serves_halted for stage in stages):
            raise UnsupportedError("single-input-kv and forecast need a cache: leave use_cache on")
        compacted = bool(stages) or call.dropped
        tail = 1 if call.dropped else min((stage.tail for stage in stages), default=0)
        if compacted and wanted is not None and not 0 < wanted <= tail:
            raise UnsupportedError(
                f"halted tokens have no logits: pass logits_to_keep=1 (up to {tail}) to a prefill, as generate does"
            )
        unlike = isinstance(call.cache, HaltedCache)  # whether the layers already hold different tokens
        if compacted or unlike:
            call.refuse_flash_window(stages[0].last + 1 if stages and not call.dropped else 0)
        skipped = self._skipped(call)
        every = enumerate(self.decoder.layers[: self.shape.layers])
        layers = [(index, layer) for index, layer in every if index not in skipped]
        with untouched_on_error(call.cache) if call.prompts or call.width > 1 else nullcontext():
            stream, trace = run_layers(
                layers, stages, stream, call, freeze=self.freeze, min_tokens=self.min_prompt_tokens
            )
            if call.cache is not None:
                refuse_unfilled(call.cache, (index for index, _ in layers))
        stream = stream.advance(self.decoder.norm(stream.hidden))
        if call.cache is not None:
            self._tell_cache(call.cache, call, stream, trace, compacted=compacted, tail=tail, skipped=skipped)
        hidden = stream.spread(call.seen, call.width) if compacted else stream.hidden
        if call.prompts:
            self._report = self._write_report(call, trace, begin)
        output = decoder_output(hidden, call.cache if call.use_cache else None)
        return output.to_tuple() if as_tuple else output

    def _skipped(self, call: Call) -> set[int]:
        """The layers that this call's token does not run through; none for a prompt, or any call of several tokens."""
        if self.depth is None or call.prompts or call.width > 1:
            return set()
        if not isinstance(call.cache, HaltedCache):
            raise UnsupportedError("this cache was begun outside of the block, so tokens generated cannot be counted")
        every = range(self.shape.layers)
        return set(every).difference(self.depth(call.cache.generated + 1, len(every)))

    def _tell_cache(
        self,
        cache: DynamicCache,
        call: Call,
        stream: TokenStream,
        trace: Trace,
        *,
        compacted: bool,
        tail: int,
        skipped: set[int],
    ) -> None:
        """Have the cache know which tokens it holds, if its layers are no longer alike."""
        if call.prompts:
            if compacted or self.depth:
                HaltedCache.adopt(cache, trace.segments, seen=call.width, tail=tail if compacted else call.width)
            return
        if compacted and not isinstance(cache, HaltedCache):
            HaltedCache.adopt(cache, call.past, seen=call.seen, tail=call.seen)
        if isinstance(cache, HaltedCache):
            cache.extend(stream.slots, stream.padded, columns=call.width, whole=not compacted, skipped=skipped)

    def _write_report(self, call: Call, trace: Trace, begin: float | None) -> Report:
        end = clock() if self.timed else None
        offsets = [call.width - prompt for prompt in call.prompts]
        return Report(
            shape=self.shape,
            prompts=call.prompts,
            stages=tuple(
                (layer, tuple(slots - offset for slots, offset in zip(rows, offsets, strict=True)))
                for layer, rows in trace.stages
            ),
            scores=tuple(trace.scores),
            loads=tuple(zip(*trace.loads, strict=True)),
            cache_bytes=0 if call.cache is None else cache_bytes(call.cache),
            full_cache_bytes=0 if call.cache is None else self._full_cache_bytes(call),
            seconds=None if begin is None or end is None else end - begin,
        )

    def _full_cache_bytes(self, call: Call) -> int:
        entries = sum(min(window - 1, call.width) if window else call.width for window in call.windows)
        entry = 2 * self.shape.kv_heads * self.shape.head_dim * self.decoder.dtype.itemsize
        return len(call.prompts) * entries * entry
