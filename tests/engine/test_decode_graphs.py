"""Where generated tokens cannot run as a recorded step, they run layer by layer, or True is refused."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from deltahalt import D3, Dash, InputError, UnsupportedError, applying, halting
from deltahalt.engine.recorded import decoding
from deltahalt.engine.recorded.graph import alone, generating
from deltahalt.errors import UnrecordedWarning
from deltahalt.host.compat import CACHE
from helpers.oracle import Feed
from helpers.recording import recorded_steps
from helpers.tiny import SLIDING_VARIANTS, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)


def tokens(model: Any, graphs: bool | None, **options: Any) -> torch.Tensor:
    ids, mask = prompts(40, 29)
    with halting(model, DASH, decode_graphs=graphs):
        return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)


@pytest.mark.parametrize(("options", "steps"), [({}, 4), ({"decode_graphs": False}, 0)], ids=["default", "off"])
def test_tokens_are_recorded_where_it_is_possible(options: dict[str, Any], steps: int) -> None:
    ids = prompts(40)[0]
    with recorded_steps() as ran, halting(tiny(), DASH, **options) as halted:
        halted.generate(ids, max_new_tokens=6, do_sample=False)
    assert len(ran) == steps  # the first token is of the prefill, the second runs layer by layer


class Other(nn.Linear):
    """A module of another package."""


def other_package(model: Any) -> None:
    layer = model.model.layers[3]
    twin = Other(64, 64, bias=False)
    twin.weight = layer.self_attn.o_proj.weight
    layer.self_attn.o_proj = twin


def own_forward(model: Any) -> None:
    layer = model.model.layers[3]
    layer.mlp.forward = partial(type(layer.mlp).forward, layer.mlp)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hook": (lambda model: model.model.layers[3].mlp.register_forward_hook(lambda *given: None), "hooks"),
    "a forward of its own": (own_forward, "a forward of their own"),
    "another package": (other_package, "Other is neither of torch nor of transformers"),
    "training": (lambda model: model.train(), "training mode"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_in_a_model_cannot_be_recorded(change: str) -> None:
    apply, message = CHANGES[change]
    expected, model = tokens(tiny(), False), tiny()
    apply(model)
    with recorded_steps() as ran:
        assert torch.equal(tokens(model, None), expected)
        with pytest.raises(UnsupportedError, match=f"decode_graphs=True is not supported here: .*{message}"):
            tokens(model, True)
    assert ran == []


@pytest.mark.parametrize(
    ("variant", "attention", "message"),
    [*((variant, "sdpa", "sliding window") for variant in SLIDING_VARIANTS), ("llama", "eager", "attention is eager")],
)
def test_models_that_cannot_be_recorded_are_refused_as_the_block_begins(
    variant: str, attention: str, message: str
) -> None:
    model = tiny(variant, attention)
    expected = tokens(model, False)
    with recorded_steps() as ran:
        assert torch.equal(tokens(model, None), expected)
        with pytest.raises(UnsupportedError, match=message), halting(model, DASH, decode_graphs=True):
            pass
    assert ran == []


def test_a_cpu_has_no_graphs() -> None:
    with pytest.raises(UnsupportedError, match="the model is on cpu"), halting(tiny(), DASH, decode_graphs=True):
        pass


def test_layers_that_are_skipped() -> None:
    with recorded_steps() as ran:
        with applying(tiny(), D3(alpha=0.9)) as applied:
            applied.model.generate(prompts(40)[0], max_new_tokens=6)
        refused = pytest.raises(UnsupportedError, match="some of the layers only")
        with refused, applying(tiny(), D3(alpha=0.9), decode_graphs=True):
            pass
    assert ran == []


def test_beams() -> None:
    options = {"num_beams": 3, "length_penalty": 0.0}
    expected = tokens(tiny(), False, **options)
    with recorded_steps() as ran:
        assert torch.equal(tokens(tiny(), None, **options), expected)
        with pytest.raises(UnsupportedError, match="3 beams reorder the cache"):
            tokens(tiny(), True, **options)
    assert ran == []


@pytest.mark.parametrize("kind", ["autograd", "autocast"])
def test_contexts_of_a_call(kind: str) -> None:
    model = tiny()

    def decode(graphs: bool | None) -> None:
        with halting(model, DASH, decode_graphs=graphs):
            feed = Feed(model)
            feed(*prompts(40), logits_to_keep=1)
            with torch.set_grad_enabled(kind == "autograd"), torch.autocast("cpu", enabled=kind == "autocast"):
                for _ in range(4):
                    model(prompts(1)[0], **{CACHE: feed.cache})

    with recorded_steps() as ran:
        decode(None)
        with pytest.raises(UnsupportedError, match=kind):
            decode(True)
    assert ran == []


class OtherLayer(DynamicLayer):
    """A layer of a cache that may do anything."""


def _other_layer(cache: Any) -> None:
    cache.layers[3].__class__ = OtherLayer


def _fewer_entries(cache: Any) -> None:
    layer = cache.layers[3]
    layer.keys, layer.values = layer.keys[..., 2:, :], layer.values[..., 2:, :]


@pytest.mark.parametrize(
    ("change", "message"), [(_other_layer, "layers of another kind"), (_fewer_entries, "as after a KV press")]
)
def test_caches_that_cannot_be_recorded(change: Callable[[Any], None], message: str) -> None:
    def decode(graphs: bool | None) -> None:
        model = tiny()
        with halting(model, DASH, decode_graphs=graphs):
            feed = Feed(model)
            feed(*prompts(40), logits_to_keep=1)
            change(feed.cache)
            for step in range(4):
                feed(prompts(1, seed=step)[0])

    with recorded_steps() as ran:
        decode(None)
        with pytest.raises(UnsupportedError, match=message):
            decode(True)
    assert ran == []


@pytest.mark.parametrize("value", [1, "yes", 0])
def test_other_values_are_refused(value: Any) -> None:
    refused = pytest.raises(InputError, match=f"decode_graphs is {value!r}; give True, False or None")
    with refused, halting(tiny(), DASH, decode_graphs=value):
        pass


@pytest.mark.parametrize("graphs", [True, None], ids=str)
def test_a_recording_that_fails(graphs: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = tokens(tiny(), False)
    refused = pytest.raises(UnsupportedError, match="recording a CUDA graph failed") if graphs else nullcontext()
    warned = nullcontext() if graphs else pytest.warns(UnrecordedWarning, match="not permitted")
    with recorded_steps() as ran, refused, warned:
        monkeypatch.setattr(decoding, "record", fail)
        assert torch.equal(tokens(tiny(), graphs), expected)
    assert ran == []


def test_while_another_thread_generates_none_records() -> None:
    expected = tokens(tiny(), False)
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with generating():
            inside.set()
            go_on.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    try:
        with recorded_steps() as ran:
            assert torch.equal(tokens(tiny(), None), expected)
            assert ran == []
            with generating():  # in this thread
                assert torch.equal(tokens(tiny(), None), expected)
            assert ran == []
    finally:
        go_on.set()
        thread.join()
    with recorded_steps() as ran, generating():
        assert torch.equal(tokens(tiny(), None), expected)
    assert len(ran) == 4


def test_a_thread_that_begins_to_generate_waits_for_a_recording() -> None:
    began = threading.Event()

    def other() -> None:
        with generating():
            began.set()

    with alone() as may_record:
        assert may_record
        thread = threading.Thread(target=other)
        thread.start()
        assert not began.wait(timeout=0.1)
    thread.join()
    assert began.is_set()


def test_off() -> None:
    with recorded_steps() as ran:
        tokens(tiny(), False)
    assert ran == []
