"""Which generated tokens run as a recorded step, and the steps of the caches that they continue."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

import torch
from transformers import DynamicCache

from deltahalt.engine.call import DecoderCall
from deltahalt.engine.host_decoder import HostDecoder
from deltahalt.engine.recorded.graph import alone, record
from deltahalt.engine.recorded.obstacles import obstacle_in_call, obstacle_in_model
from deltahalt.engine.recorded.step import DecodeStep
from deltahalt.engine.recorded.wiring import Wiring
from deltahalt.engine.stream import TokenStream
from deltahalt.engine.switch import check_switch
from deltahalt.errors import UnrecordedWarning, UnsupportedError

ROOM = 512  # tokens that K/V get room for at first; when it is used up, they get twice as much


@dataclass(frozen=True)
class Recorded:
    """A step of decoding, the function that repeats it on the GPU, and what it depends on in the model."""

    step: DecodeStep
    repeat: Callable[[], torch.Tensor]
    wiring: Wiring


class Decoding:
    """The generated tokens of a block: each runs as a recorded step where that is possible, else layer by layer.

    counted: whether generated tokens run through some of the layers only. The first token after a prompt, and after any
    other change of the cache, runs layer by layer: so beam search, which reorders the cache at each token, never
    records. While several threads generate, none begins to record.
    """

    def __init__(self, host: HostDecoder, *, counted: bool) -> None:
        self.host, self.counted = host, counted
        self.wanted: bool | None = None
        self._left: WeakKeyDictionary[DynamicCache, ReferenceType[torch.Tensor]] = WeakKeyDictionary()
        self._recorded: WeakKeyDictionary[DynamicCache, Recorded] = WeakKeyDictionary()
        self._given_up: WeakSet[DynamicCache] = WeakSet()  # so that layers are not searched again at each token

    def want(self, wanted: Any) -> None:
        """Record generated tokens where that is possible (None), never (False), or always (True).

        Raises InputError for another value, and UnsupportedError for True and a model that cannot be recorded.
        """
        self.wanted = check_switch("decode_graphs", wanted)
        if wanted:
            self._refuse(self._skipping() or obstacle_in_model(self.host))

    def refuse_beams(self, beams: int | None) -> None:
        """Raise UnsupportedError if tokens must be recorded, and `beams` of them in each row are generated at once."""
        if beams is not None and beams > 1:
            self._refuse(f"{beams} beams reorder the cache at every token: set num_beams=1")

    def run(self, stream: TokenStream, call: DecoderCall) -> TokenStream | None:
        """Run a generated token of each row through all layers; the cache then holds it.

        Returns the tokens as they leave the last layer, whose states last until the next token; None where they have
        yet to run layer by layer. Raises UnsupportedError as `want` does.
        """
        recorded, cache = self._recorded_for(stream, call), call.cache
        if recorded is None or cache is None:
            return None
        recorded.step.take(stream.hidden, stream.rotary)
        hidden = recorded.repeat()
        if recorded.wiring.stale:  # looked at while the GPU is at work; nobody has seen the result yet
            return None
        recorded.step.show(cache)
        self._recorded[cache] = recorded
        return stream.advance(hidden)

    def note(self, call: DecoderCall) -> None:
        """Note what a generated token that ran layer by layer has left in the cache."""
        cache = call.cache
        if self.wanted is not False and cache is not None and cache not in self._given_up:
            self._left[cache] = ref(_keys(cache))

    def drop(self, cache: DynamicCache | None) -> None:
        """Free the memory of the recording that continues `cache`, which is about to receive a prompt."""
        if cache is not None:
            self._left.pop(cache, None)
            self._recorded.pop(cache, None)

    def forget(self) -> None:
        """Free the memory of all recordings."""
        self._left.clear()
        self._recorded.clear()

    def _recorded_for(self, stream: TokenStream, call: DecoderCall) -> Recorded | None:
        """The recorded step that runs these tokens; None if there is none."""
        cache = call.cache
        if self.wanted is False or cache is None:
            return None
        before, left = self._recorded.pop(cache, None), self._left.pop(cache, None)
        obstacle = self._skipping() or obstacle_in_call(self.host, call)
        if obstacle is not None:
            self._refuse(obstacle)
            return None
        room = None
        if before is None:
            room = ROOM if left is not None and left() is _keys(cache) else None
        elif before.step.goes_on(cache, call.masks.past, stream):
            if not before.step.full:
                return before
            room = 2 * before.step.room
        del before  # so that its K/V are free, layer by layer, as they move
        if room is None:
            return None
        with alone() as may_record:
            return self._record(stream, call, room) if may_record else None

    def _record(self, stream: TokenStream, call: DecoderCall, room: int) -> Recorded | None:
        """A new step, recorded on this token. K/V of the cache move to where there is room."""
        assert call.cache is not None
        wiring = Wiring(self.host.layers)
        obstacle = wiring.obstacle(stream.hidden.device)
        if obstacle is not None:
            self._refuse(obstacle)
            self._given_up.add(call.cache)
            return None
        try:
            with torch.inference_mode(False), torch.no_grad():  # so that calls outside of inference mode can go on
                step = DecodeStep(self.host, call.cache, call.masks.past, stream, room)
                step.take(stream.hidden, stream.rotary)
                return Recorded(step, record(step.compute, stream.hidden.device), wiring)
        except RuntimeError as error:
            if self.wanted:
                raise UnsupportedError(f"recording a CUDA graph failed ({error}): leave decode_graphs out") from error
            self.wanted = False
            warnings.warn(
                f"generated tokens run layer by layer, since recording them as a CUDA graph failed: {error}. Give "
                "decode_graphs=False to leave it out",
                UnrecordedWarning,
                stacklevel=2,
            )
            return None

    def _skipping(self) -> str | None:
        return "generated tokens run through some of the layers only: choose another method" if self.counted else None

    def _refuse(self, obstacle: str | None) -> None:
        if self.wanted and obstacle is not None:
            raise UnsupportedError(f"decode_graphs=True is not supported here: {obstacle}, or leave decode_graphs out")


def _keys(cache: DynamicCache) -> torch.Tensor:
    """Keys of the first layer, which any change of the cache replaces."""
    layers: list[Any] = cache.layers
    keys: torch.Tensor = layers[0].keys
    return keys
