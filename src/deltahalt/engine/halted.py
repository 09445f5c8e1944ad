"""A model under halting: the function that replaces its decoder's forward."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

from transformers.modeling_outputs import BaseModelOutputWithPast

from deltahalt.clock import clock
from deltahalt.engine.cache import HaltedCache, cache_bytes, cache_entries, untouched_on_error
from deltahalt.engine.call import DecoderCall, prepare
from deltahalt.engine.handover import WANTED
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.prefill import continuation, halting_stages, last_columns, prefill, refuse_halted_kv
from deltahalt.engine.report import Report
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.trace import Trace
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.flops import ModelShape, dense_loads
from deltahalt.host.blocks import Answer, Block, Place
from deltahalt.host.compat import CACHE, decoder_arguments, decoder_output, refuse_unknown_host
from deltahalt.host.families.base import Module
from deltahalt.policies.base import AnyPolicy, Stage, place

Depth = Callable[[int, int], Sequence[int]]  # number of a generated token, from 1; layers of the model -> those to run


class Tower(Protocol):
    """What drops visual tokens before the decoder. places: the callables in whose place it stands; report: its own."""

    @property
    def places(self) -> Mapping[Place, Answer]: ...

    @property
    def report(self) -> Any: ...


class Halted:
    """A model under `halting`: the replacement of its decoder's forward, and the report of its latest prefill."""

    block: Block  # what answers in the model

    def __init__(
        self,
        model: Module,
        decoder: Module,
        policy: AnyPolicy,
        *,
        min_prompt_tokens: int,
        timed: bool,
        depth: Depth | None = None,
        sees_images: bool = False,
        tower: Tower | None = None,
    ) -> None:
        self.host = HostDecoder.of(decoder)
        refuse_unknown_host(decoder)
        self.model, self.policy, self.tower = model, policy, tower
        self.stages = place(policy, self.host.shape.layers, vision=sees_images)
        refuse_halted_kv(self.host.shape, self.stages)
        shortest: Any = min_prompt_tokens
        if not isinstance(shortest, int) or shortest < 0:
            raise InputError(f"min_prompt_tokens is {shortest!r}; give a number of tokens, 0 or more")
        self.min_prompt_tokens, self.timed, self.depth = min_prompt_tokens, timed, depth
        self._report: Report | None = None

    @property
    def shape(self) -> ModelShape:
        """The decoder's sizes."""
        return self.host.shape

    @property
    def report(self) -> Report:
        """The latest prefill's Report. Raises InputError before the first."""
        if self._report is None:
            raise InputError(
                "there is no report yet: run the model inside `with halting(...)` first, in the thread that opened it "
                "(in another thread, call halted.generate)"
            )
        return self._report

    @property
    def ran(self) -> bool:
        """Whether there is a report."""
        return self._report is not None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate` as inside the block, from any thread; it ends as it began, even if the block is left.

        Args:
            *args: What `model.generate` takes.
            **kwargs: What `model.generate` takes.

        Returns:
            What `model.generate` returns.

        Raises:
            UnsupportedError: For settings that halting does not support.
        """
        with self.block.begun().opened():
            return self.model.generate(*args, **kwargs)

    @property
    def vision_report(self) -> Any:
        """The VisionReport of the latest images. Raises InputError before them, and where no policy acts in the ViT."""
        if self.tower is None:
            raise InputError(
                'no policy acts in the ViT: name one, such as halting(model, policy, vision="vision-dash")'
            )
        return self.tower.report

    def forward(
        self, block: Block, _original: Any, *args: Any, **kwargs: Any
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Stand in for the decoder's forward, with the same arguments.

        After a halting prefill, last_hidden_state [B, T, D] holds NaN for halted tokens. Raises what
        `deltahalt.engine.call.prepare` and the policy raise.
        """
        begin = clock() if self.timed else None
        kwargs |= block.handed or {}
        wanted = kwargs.pop(WANTED, None)
        arguments = decoder_arguments(self.host.module, args, kwargs)
        as_tuple = arguments.pop("return_dict", None) is False
        arguments["past_key_values"] = arguments.pop(CACHE, None)
        stream, call = prepare(self.host, shortest=self.min_prompt_tokens, **arguments)
        stages = halting_stages(self.stages, stream, call)
        compacted = bool(stages) or call.layout.dropped
        tail = last_columns(stages, call)
        if compacted and wanted is not None and not 0 < wanted <= tail:
            raise UnsupportedError(
                f"halted tokens have no logits: pass logits_to_keep=1 (up to {tail}) to a prefill, as generate does"
            )
        if compacted or isinstance(call.cache, HaltedCache):
            call.masks.refuse_flash_window(stages[0].last + 1 if stages and not call.layout.dropped else 0)
        turn = not call.layout.prompts and call.layout.width > 1
        cached = cache_entries(call.cache) if turn and call.cache is not None else ()
        stream, trace = self._run(stages, stream, call)
        stream = stream.advance(self.host.norm(stream.hidden))
        hidden = stream.spread(call.layout.seen, call.layout.width) if compacted else stream.hidden
        if call.layout.prompts:
            self._report = self._write_report(call, trace, begin)
        elif turn:
            self._report = self._report_of_turn(call, stream.lengths, cached)
        output = decoder_output(hidden, call.cache if call.use_cache else None)
        return output.to_tuple() if as_tuple else output

    def _run(self, stages: tuple[Stage, ...], stream: TokenStream, call: DecoderCall) -> tuple[TokenStream, Trace]:
        layers = list(enumerate(self.host.layers))
        if call.layout.prompts:
            with untouched_on_error(call.cache):
                return prefill(layers, stages, stream, call, counted=self.depth is not None)
        skipped = self._skipped(call)
        layers = [(index, layer) for index, layer in layers if index not in skipped]
        with untouched_on_error(call.cache) if call.layout.width > 1 else nullcontext():
            return continuation(layers, stream, call, skipped=skipped)

    def _skipped(self, call: DecoderCall) -> set[int]:
        """The layers that this call's token does not run through; none for a call of several tokens."""
        if self.depth is None or call.layout.width > 1:
            return set()
        if not isinstance(call.cache, HaltedCache):
            raise UnsupportedError(
                "this cache was created outside the 'with' block: generated tokens must be counted from the prefill on"
            )
        every = range(self.host.shape.layers)
        return set(every).difference(self.depth(call.cache.generated + 1, len(every)))

    def _write_report(self, call: DecoderCall, trace: Trace, begin: float | None) -> Report:
        end = clock() if self.timed else None
        offsets = [call.layout.width - prompt for prompt in call.layout.prompts]
        return Report(
            shape=self.shape,
            prompts=call.layout.prompts,
            stages=tuple(
                (layer, tuple(slots - offset for slots, offset in zip(rows, offsets, strict=True)))
                for layer, rows in trace.stages
            ),
            scores=tuple(trace.scores),
            loads=tuple(zip(*trace.loads, strict=True)),
            cache_bytes=0 if call.cache is None else cache_bytes(call.cache),
            full_cache_bytes=0 if call.cache is None else self._full_cache_bytes(call),
            seconds=None if begin is None or end is None else end - begin,
            reason=None if trace.stages else self._why_whole(call.layout.prompts),
        )

    def _why_whole(self, prompts: tuple[int, ...]) -> str:
        """Why no token of `prompts` halts."""
        if max(prompts) < self.min_prompt_tokens:
            return f"every prompt is shorter than min_prompt_tokens={self.min_prompt_tokens}"
        return f"the policy keeps every token of prompts of {max(prompts)} tokens or fewer"

    def _report_of_turn(self, call: DecoderCall, tokens: tuple[int, ...], cached: tuple[int, ...]) -> Report:
        """What is reported of a call of several tokens that continues a cache: no token of it halts."""
        reason = (
            f"the latest {call.layout.width} tokens continue a cache of {call.layout.seen} (an earlier turn, or a "
            "prefix): tokens halt only in a prompt that begins its cache"
        )
        if self._report is not None:
            return replace(self._report, reason=reason)
        held = 0 if call.cache is None else cache_bytes(call.cache)
        return Report(
            shape=self.shape,
            prompts=tokens,
            stages=(),
            scores=(),
            loads=tuple(tuple(dense_loads(self.shape.layers, count)) for count in tokens),
            cache_bytes=held,
            full_cache_bytes=held,
            seconds=None,
            reason=reason,
            cached=cached,
        )

    def _full_cache_bytes(self, call: DecoderCall) -> int:
        width, shape = call.layout.width, self.host.shape
        entries = sum(min(window - 1, width) if window else width for window in self.host.windows)
        entry = 2 * shape.kv_heads * shape.head_dim * self.host.module.dtype.itemsize
        return len(call.layout.prompts) * entries * entry
