"""A model under halting: the function that replaces its decoder's forward."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

from transformers.modeling_outputs import BaseModelOutputWithPast

from deltahalt.clock import clock
from deltahalt.engine.cache import HaltedCache, cache_bytes, cache_entries, untouched_on_error
from deltahalt.engine.call import DecoderCall, prepare
from deltahalt.engine.handover import WANTED
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.last_layer import exit_layer
from deltahalt.engine.layout import Layout
from deltahalt.engine.pieces import check_piece_tokens, in_pieces, piece_size
from deltahalt.engine.prefill import halting_stages, last_columns, refuse_halted_kv, run_call
from deltahalt.engine.question import Question
from deltahalt.engine.recorded.decoding import Decoding
from deltahalt.engine.report import Report
from deltahalt.engine.resuming import resting_in
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.switch import check_switch
from deltahalt.engine.trace import Trace
from deltahalt.errors import InputError, UnsupportedError
from deltahalt.flops import ModelShape
from deltahalt.host.blocks import Answer, Block, Place
from deltahalt.host.compat import CACHE, decoder_arguments, decoder_output, refuse_unknown_host
from deltahalt.host.families.base import Module
from deltahalt.host.fused import fused_parts
from deltahalt.host.heads import Wanted
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
        question: Question | None = None,
        piece_tokens: int | None = None,
        decode_graphs: bool | None = None,
        fused_kernels: bool | None = None,
    ) -> None:
        self.host = HostDecoder.of(decoder)
        refuse_unknown_host(decoder)
        self.model, self.policy, self.tower, self.question = model, policy, tower, question
        self.stages = place(policy, self.host.shape.layers, vision=sees_images)
        refuse_halted_kv(self.host.shape, self.stages)
        shortest: Any = min_prompt_tokens
        if not isinstance(shortest, int) or shortest < 0:
            raise InputError(f"min_prompt_tokens is {shortest!r}; give a number of tokens, 0 or more")
        self.min_prompt_tokens, self.timed, self.depth = min_prompt_tokens, timed, depth
        self.piece_tokens = check_piece_tokens(piece_tokens)
        self.decoding = Decoding(self.host, counted=depth is not None)
        self.decoding.want(decode_graphs)
        self.fused_kernels = check_switch("fused_kernels", fused_kernels)
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

        After a halting prefill, last_hidden_state [B, T, D] holds NaN for halted tokens, and for all tokens but the
        last where the head reads only that one. Raises what `deltahalt.engine.call.prepare` and the policy raise.
        """
        begin = clock() if self.timed else None
        kwargs |= block.handed or {}
        wanted: Wanted | None = kwargs.pop(WANTED, None)
        arguments = decoder_arguments(self.host.module, args, kwargs)
        as_tuple = arguments.pop("return_dict", None) is False
        arguments["past_key_values"] = arguments.pop(CACHE, None)
        stream, call = prepare(self.host, shortest=self.min_prompt_tokens, **arguments)
        call = replace(call, piece=piece_size(self.piece_tokens, stream, call))
        layout, held = call.layout, isinstance(call.cache, HaltedCache)
        may_halt = bool(layout.prompts) and (not layout.later_turn or (wanted is not None and wanted.columns == 1))
        stages = halting_stages(self.stages, stream, call) if may_halt else ()
        call = replace(call, resting=resting_in(call, self.stages) if may_halt else None)
        if stages and self.question is not None:
            call = call.asked(self.question, arguments.get("input_ids"))
        tail = last_columns(stages, call)
        compacted = bool(stages) or layout.dropped or call.resting is not None
        if compacted and wanted is not None and not 0 < wanted.columns <= tail:
            raise UnsupportedError(wanted.advice.format(tail=tail))
        if compacted or held:
            call.masks.refuse_flash_window(stages[0].last + 1 if stages and not layout.dropped and not held else 0)
        call = replace(call, exit_layer=exit_layer(stages, wanted, call))
        cached = cache_entries(call.cache) if layout.later_turn and call.cache is not None else ()
        stream, trace = self._run(stages, stream, call)
        stream = stream.advance(in_pieces(self.host.norm, stream.hidden, call.piece))
        hidden = stream.spread(layout.seen, layout.width) if compacted else stream.hidden
        if layout.prompts:
            self._note(self._write_report(call, trace, begin, cached, may_halt=may_halt), layout)
        output = decoder_output(hidden, call.cache if call.use_cache else None)
        return output.to_tuple() if as_tuple else output

    def _run(self, stages: tuple[Stage, ...], stream: TokenStream, call: DecoderCall) -> tuple[TokenStream, Trace]:
        skipped = self._skipped(call)
        layers = [(index, layer) for index, layer in enumerate(self.host.layers) if index not in skipped]
        options: dict[str, Any] = {"counted": self.depth is not None, "skipped": skipped}
        if call.layout.prompts:
            self.decoding.drop(call.cache)
            with untouched_on_error(call.cache), self._kernels(stages, stream, call):
                return run_call(layers, stages, stream, call, **options)
        done = self.decoding.run(stream, call)
        result = run_call(layers, stages, stream, call, done=done, **options)
        if done is None:
            self.decoding.note(call)
        return result

    def _kernels(
        self, stages: tuple[Stage, ...], stream: TokenStream, call: DecoderCall
    ) -> AbstractContextManager[object]:
        """The block in which a prompt runs, with fused kernels or without."""
        usual = (bool(stages) or call.resting is not None) and stream.hidden.is_cuda
        if not (usual if self.fused_kernels is None else self.fused_kernels):
            return nullcontext()
        return Block(fused_parts(self.host.family, self.host.layers)).opened()

    def _skipped(self, call: DecoderCall) -> set[int]:
        """The layers that a generated token does not run through; none for a prompt."""
        if self.depth is None or call.layout.prompts:
            return set()
        if not isinstance(call.cache, HaltedCache):
            raise UnsupportedError(
                "this cache was created outside the 'with' block: generated tokens must be counted from the prefill on"
            )
        every = range(self.host.shape.layers)
        return set(every).difference(self.depth(call.cache.generated + 1, len(every)))

    def _note(self, report: Report, layout: Layout) -> None:
        """Keep the report. Of a later turn in which no token halted or ran on, an earlier report gets the reason."""
        turn_is_whole = layout.later_turn and not report.stages and not any(report.resumed)
        earlier = self._report if turn_is_whole else None
        self._report = report if earlier is None else replace(earlier, reason=report.reason)

    def _write_report(
        self, call: DecoderCall, trace: Trace, begin: float | None, cached: tuple[int, ...], *, may_halt: bool
    ) -> Report:
        """The report of a prompt, or of a later turn that found `cached` tokens in each layer's cache."""
        end = clock() if self.timed else None
        layout = call.layout
        offsets = [layout.seen + layout.width - prompt for prompt in layout.prompts]
        return Report(
            shape=self.shape,
            prompts=layout.prompts,
            stages=tuple(
                (layer, tuple(slots - offset for slots, offset in zip(rows, offsets, strict=True)))
                for layer, rows in trace.stages
            ),
            scores=tuple(trace.scores),
            loads=tuple(zip(*trace.loads, strict=True)),
            cache_bytes=0 if call.cache is None else cache_bytes(call.cache),
            full_cache_bytes=0 if call.cache is None else self._full_cache_bytes(call),
            seconds=None if begin is None or end is None else end - begin,
            reason=None if trace.stages else self._why_whole(layout, may_halt=may_halt),
            cached=cached,
            resumed=trace.resumed,
        )

    def _why_whole(self, layout: Layout, *, may_halt: bool) -> str:
        """Why no token halts."""
        what = "later turn" if layout.later_turn else "prompt"
        if max(layout.prompts) < self.min_prompt_tokens:
            return f"every {what} is shorter than min_prompt_tokens={self.min_prompt_tokens}"
        if not may_halt:
            return (
                f"the latest {layout.width} tokens continue a cache of {layout.seen}: tokens of a later turn halt only "
                "where logits_to_keep=1 is given, as generate does"
            )
        return f"the policy keeps every token of {what}s of {max(layout.prompts)} tokens or fewer"

    def _full_cache_bytes(self, call: DecoderCall) -> int:
        """Bytes of K and V that the full model would hold after the same calls."""
        columns, shape = call.layout.seen + call.layout.width, self.host.shape
        entries = sum(min(window - 1, columns) if window else columns for window in self.host.windows)
        entry = 2 * shape.kv_heads * shape.head_dim * self.host.module.dtype.itemsize
        return len(call.layout.prompts) * entries * entry
