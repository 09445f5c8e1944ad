"""What a host of another version names differently is taken by that name or refused by it, and never passed unseen."""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel

from deltahalt import Dash, InputError, UnsupportedError, halting
from deltahalt.engine.cache import HaltedCache
from deltahalt.errors import UntestedVersionWarning
from deltahalt.host import compat
from deltahalt.host.compat import CACHE, NEWEST_TESTED
from helpers.oracle import Feed
from helpers.tiny import attributes, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
IDS = prompts(120)[0]
VERSION = re.escape(transformers.__version__)


class RenamedLayer(LlamaDecoderLayer):
    """A layer whose cache has another name; the known one lands in its keyword arguments unseen."""

    def forward(
        self, hidden_states: Any, attention_mask: Any, position_embeddings: Any, memory: Any = None, **kwargs: Any
    ) -> Any:
        kwargs |= {CACHE: memory}
        return super().forward(hidden_states, attention_mask, position_embeddings=position_embeddings, **kwargs)


class RenamedAttention(LlamaAttention):
    """An attention module whose mask has another name."""

    def forward(self, hidden_states: torch.Tensor, position_embeddings: Any, mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(hidden_states, position_embeddings, mask, **kwargs)


class RequiringLayer(LlamaDecoderLayer):
    """A layer that cannot run without one more argument."""

    def forward(self, hidden_states: torch.Tensor, segment_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        return super().forward(hidden_states, attention_mask, **kwargs)


class RenamedDecoder(LlamaModel):
    """A decoder whose cache has another name."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, memory: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, attention_mask, **kwargs, **{CACHE: memory})


class WrappedLayer(LlamaDecoderLayer):
    """A layer that passes on all that it is given, save for the cache: its signature shows nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs | {CACHE: None})


class PairLayer(LlamaDecoderLayer):
    """A layer that returns more than hidden states."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs), "more"


class BareAttention(LlamaAttention):
    """An attention module that returns its output alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)[0]


def with_class(find: Callable[[Any], Any], cls: type) -> Any:
    """A tiny model in which a part has another class."""
    model = tiny()
    for part in find(model):
        part.__class__ = cls
    return model


def layers(model: Any) -> Any:
    return model.model.layers


def attentions(model: Any) -> Any:
    return [layer.self_attn for layer in model.model.layers]


ARGUMENTS = {
    "layer": (layers, RenamedLayer, f"RenamedLayer takes no argument `{CACHE}`"),
    "attention": (attentions, RenamedAttention, "RenamedAttention takes no argument `attention_mask`"),
    "required": (layers, RequiringLayer, "RequiringLayer"),
    "decoder": (lambda model: [model.model], RenamedDecoder, "RenamedDecoder takes no argument `position_ids`"),
}


@pytest.mark.parametrize(("find", "cls", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_host_that_names_an_argument_differently_is_refused(find: Any, cls: type, message: str) -> None:
    model = with_class(find, cls)
    before = attributes(model)
    with pytest.raises(UnsupportedError, match=f"{message}.*transformers {VERSION}"), halting(model, DASH):
        pass
    assert attributes(model) == before


OUTPUTS = {
    "layer": (layers, PairLayer, r"a decoder layer returned \(Tensor, str\)"),
    "attention": (attentions, BareAttention, "an attention module returned Tensor"),
    "cache": (layers, WrappedLayer, "layer 1 put no keys into the cache"),
}


@pytest.mark.parametrize(("find", "cls", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_what_a_host_returns_is_known_or_refused(find: Any, cls: type, message: str) -> None:
    model = with_class(find, cls)
    first = Dash(start=0, pruning_ratio=0.6)  # the engine itself calls the attention module of layer 0
    with halting(model, first), pytest.raises(UnsupportedError, match=f"{message}.*transformers {VERSION}"):
        Feed(model)(IDS, logits_to_keep=1)


UNKNOWN = {
    "number": {"window_of_all_layers": 4},
    "flag": {"is_prefill": True},
    "tensor": {"cu_seq_lens_q": torch.tensor([0, 40])},
    "text": {"mode": "fast"},
}


@pytest.mark.parametrize("argument", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_argument_of_the_decoder_is_refused_by_name(argument: dict[str, Any]) -> None:
    model, cache = tiny(), DynamicCache()
    with halting(model, DASH), pytest.raises(UnsupportedError, match=f"{next(iter(argument))} .*{VERSION}"):
        model(IDS, logits_to_keep=1, **{CACHE: cache}, **argument)
    assert cache.get_seq_length() == 0


def test_an_unknown_argument_that_is_none_is_left_out() -> None:
    model = tiny()
    with halting(model, DASH):
        model(IDS, logits_to_keep=1, window_of_all_layers=None)


def test_attention_in_both_directions_is_refused() -> None:
    model = tiny()
    with halting(model, DASH), pytest.raises(UnsupportedError, match="is_causal=False"):
        model(IDS, logits_to_keep=1, is_causal=False)


@pytest.mark.parametrize("chosen", [0, -1, [0, 2], True], ids=str)
def test_hidden_states_chosen_by_number_are_refused(chosen: Any) -> None:
    model = tiny()
    with halting(model, DASH), pytest.raises(UnsupportedError, match="output_hidden_states"):
        model.model(IDS, output_hidden_states=chosen)


# Names of the cache


def test_the_cache_by_position_and_by_name() -> None:
    model = tiny()
    with halting(model, DASH):
        named = model.model(IDS, **{CACHE: DynamicCache()})
        placed = model.model(IDS, None, None, DynamicCache())
    for output in (named, placed):
        assert isinstance(getattr(output, CACHE), HaltedCache)
    assert torch.equal(named.last_hidden_state[:, -1], placed.last_hidden_state[:, -1])


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
def test_the_older_name_of_the_cache_is_taken_too() -> None:
    model, cache = tiny(), DynamicCache()
    with halting(model, DASH):
        assert getattr(model.model(IDS, past_key_values=cache), CACHE) is cache
    assert isinstance(cache, HaltedCache)


def test_an_argument_given_twice_is_refused() -> None:
    model = tiny()
    with halting(model, DASH), pytest.raises(InputError, match="given attention_mask twice"):
        model.model(IDS, None, attention_mask=torch.ones_like(IDS))
    with halting(model, DASH), pytest.raises(InputError, match="pass them by name"):
        model.model(IDS, *(None,) * 20)


def test_a_tuple_is_returned_where_one_is_wanted() -> None:
    model = tiny()
    with halting(model, DASH):
        states, cache = model.model(IDS, return_dict=False)
        assert states.shape == (1, 120, 64)
        assert isinstance(cache, HaltedCache)
        logits, cache = model(IDS, logits_to_keep=1, return_dict=False)
    assert logits.shape == (1, 1, 128)


# A newer version than all tested


@pytest.fixture
def fresh() -> Iterator[None]:
    compat.warn_if_untested.cache_clear()
    yield
    compat.warn_if_untested.cache_clear()


def open_two_blocks(model: Any) -> None:
    for _ in range(2):
        with halting(model, DASH):
            pass


@pytest.mark.usefixtures("fresh")
def test_a_newer_version_than_all_tested_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.transformers, "__version__", "99.1.0")
    model = tiny()
    with pytest.warns(UntestedVersionWarning, match=f"99.1.0 is newer than {re.escape(NEWEST_TESTED)}") as seen:
        open_two_blocks(model)
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.usefixtures("fresh")
def test_a_tested_version_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.transformers, "__version__", NEWEST_TESTED)
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with halting(model, DASH):
            pass


def test_the_newest_version_tested_is_the_pinned_one() -> None:
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    assert f'transformers=={NEWEST_TESTED}; python_version >= "3.11"\n' in pins
