"""`halting(model, policy)`: the one seam between deltahalt and a Hugging Face model."""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from deltahalt.cache import HaltedCache
from deltahalt.call import Call, prepare
from deltahalt.decision import decide
from deltahalt.decoder import run_layers
from deltahalt.errors import InputError, PolicyError, UnsupportedError
from deltahalt.families import family_of
from deltahalt.families.base import Module
from deltahalt.flops import ModelShape
from deltahalt.policy import AnyPolicy, place
from deltahalt.report import Report
from deltahalt.trace import Trace

HaltedKV = Literal["drop", "frozen"]
REFUSED_IN_GENERATE = {
    "prefill_chunk_size": "a chunk would be taken for the whole prompt; leave it unset",
    "assistant_model": "draft tokens would be taken for the prompt; leave it out",
    "prompt_lookup_num_tokens": "draft tokens would be taken for the prompt; leave it unset",
    "use_cache": "every step would halt anew; leave the cache on",
}
WANTED = "deltahalt_logits_to_keep"  # carries the outer model's logits_to_keep down to the decoder


class Halted:
    """A model under `halting`: the decoder's forward while attached, and the report of its latest prefill."""

    def __init__(
        self, decoder: Module, policy: AnyPolicy, *, halted_kv: HaltedKV, min_prompt_tokens: int, timed: bool
    ) -> None:
        config: Any = decoder.config
        self.decoder, self.policy = decoder, policy
        self.family = family_of(config)
        self.stages = place(policy, config.num_hidden_layers)
        self.shape = ModelShape.of(config)
        self.freeze, self.min_prompt_tokens, self.timed = halted_kv == "frozen", min_prompt_tokens, timed
        self._report: Report | None = None
        if halted_kv not in get_args(HaltedKV):
            raise PolicyError(f"halted_kv is {halted_kv!r}; choose one of {', '.join(get_args(HaltedKV))}")
        if self.freeze and any(self.shape.windows):
            raise UnsupportedError('halted_kv="frozen" is not supported on sliding-window layers: use "drop"')

    @property
    def report(self) -> Report:
        """The latest prefill's Report. Raises InputError before the first."""
        if self._report is None:
            raise InputError("there is no report yet: run the model inside `with halting(...)` first")
        return self._report

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Stand in for the decoder's forward, with the same arguments.

        After a halting prefill, last_hidden_state [B, T, D] holds NaN for halted tokens. Raises what
        `deltahalt.call.prepare` and the policy raise.
        """
        begin = self._clock()
        wanted = kwargs.pop(WANTED, None)
        kwargs |= dict(
            zip(("input_ids", "attention_mask", "position_ids", "past_key_values"), args, strict=False)
        )
        stream, call = prepare(self.decoder, self.family, freeze=self.freeze, **kwargs)
        stages = tuple(
            stage for stage in self.stages if decide(stage, call.prompts, stream, self.min_prompt_tokens)
        )
        tail = min((stage.policy.keep_last for stage in stages), default=0)
        if stages and wanted is not None and not 0 < wanted <= tail:
            raise UnsupportedError(
                f"halted tokens have no logits: pass logits_to_keep=1 (up to {tail}) to a prefill, as generate does"
            )
        stream, trace = run_layers(
            self.decoder, stages, stream, call, freeze=self.freeze, min_tokens=self.min_prompt_tokens
        )
        if isinstance(call.cache, HaltedCache):
            call.cache.extend(stream.slots, stream.padded)
        elif call.cache is not None and stages:
            HaltedCache.adopt(call.cache, trace.segments, seen=call.width, tail=tail)
        hidden = stream.spread(call.width) if stages else stream.hidden
        if call.prompts:
            self._report = self._write_report(call, trace, begin)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=call.cache if call.use_cache else None
        )

    def _write_report(self, call: Call, trace: Trace, begin: float | None) -> Report:
        end = self._clock()
        offsets = [call.width - prompt for prompt in call.prompts]
        layers: list[Any] = [] if call.cache is None else list(call.cache.layers)
        entry = sum(layer.keys[:, :, :1].nbytes + layer.values[:, :, :1].nbytes for layer in layers[:1])
        spans = [
            min(window - 1, call.width) if window else call.width for window in call.windows[: len(layers)]
        ]
        return Report(
            shape=self.shape,
            prompts=call.prompts,
            stages=tuple(
                (layer, tuple(slots - offset for slots, offset in zip(rows, offsets, strict=True)))
                for layer, rows in trace.stages
            ),
            loads=tuple(zip(*trace.loads, strict=True)),
            cache_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
            full_cache_bytes=entry * sum(spans),
            seconds=None if begin is None or end is None else end - begin,
        )

    def _clock(self) -> float | None:
        if not self.timed:
            return None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def halting(
    model: nn.Module,
    policy: AnyPolicy,
    *,
    halted_kv: HaltedKV = "drop",
    min_prompt_tokens: int = 0,
    timed: bool = False,
) -> Iterator[Halted]:
    """Halt prompt tokens in every prefill of `model` inside the `with` block; decoding stays as it is.

    model: a Hugging Face causal language model of a known family. halted_kv: "drop" gives halted tokens no K/V in deeper
    layers; "frozen" lets them go on serving K/V of their last hidden state. min_prompt_tokens: shorter prompts stay
    whole. timed: measure each prefill's seconds, waiting for the device.

    Yields the Halted model, whose `report` tells what the latest prefill did. On any exit the model is as before.
    Raises UnsupportedError for a model that cannot be halted, PolicyError for a policy that does not fit it.
    """
    decoder = _find_decoder(model)
    halted = Halted(decoder, policy, halted_kv=halted_kv, min_prompt_tokens=min_prompt_tokens, timed=timed)
    with ExitStack() as undo:
        # An accelerate hook has put a wrapper in `forward`, which calls `_old_forward`: keep the wrapper.
        _replace(decoder, "_old_forward" if hasattr(decoder, "_hf_hook") else "forward", halted.forward, undo)
        if model is not decoder:
            undo.callback(model.register_forward_pre_hook(_pass_logits_down, with_kwargs=True).remove)
        if callable(generate := getattr(model, "generate", None)):
            _replace(model, "generate", _checked(generate), undo)
        yield halted


def _find_decoder(model: Module) -> Module:
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise UnsupportedError("this model is compiled as a whole: compile its layers in place of it")
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if decoder is None or not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise UnsupportedError(
            f"{type(model).__name__} has no decoder to halt tokens in: use a causal language model"
        )
    for name in ("forward", "_old_forward"):
        if isinstance(getattr(decoder.__dict__.get(name), "__self__", None), Halted):
            raise UnsupportedError(
                "this model is halting already: leave the other `with halting(...)` block first"
            )
    return decoder


def _replace(target: nn.Module, name: str, value: Callable[..., Any], undo: ExitStack) -> None:
    """Set an attribute of the instance until `undo` unwinds."""
    if name in target.__dict__:
        undo.callback(setattr, target, name, target.__dict__[name])
    else:
        undo.callback(delattr, target, name)
    setattr(target, name, value)


def _pass_logits_down(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
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
        for name, advice in REFUSED_IN_GENERATE.items():
            value = given.get(name, getattr(config, name, None))
            if value not in (None, True) if name == "use_cache" else value is not None:
                raise UnsupportedError(f"generate({name}={value!r}) is not supported with halting: {advice}")
        return generate(*args, **kwargs)

    return checked
