"""What presses refuse: compositions, caches and calls that they cannot serve."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from deltahalt import UnsupportedError
from helpers.tiny import attributes, tiny

pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

import kvpress

from deltahalt.integrations.kvpress import DeltaPress
from helpers.presses import IDS, SMALL, follower


@dataclass(frozen=True)
class Refused:
    """A press and how it is called. advice: what the message has to say."""

    advice: str
    press: Any
    variant: str = "llama"
    options: tuple[tuple[str, Any], ...] = ()


def composed(*presses: Any) -> Any:
    return kvpress.ComposedPress(list(presses))


REFUSED = {
    "composed": Refused("then=", composed(DeltaPress(**SMALL), follower("SnapKVPress"))),
    "composed the other way": Refused("then=", composed(follower("SnapKVPress"), DeltaPress(**SMALL))),
    "while decoding": Refused("then=", kvpress.PrefillDecodingPress(prefilling_press=DeltaPress(**SMALL))),
    "positions by index": Refused(
        "KeyRerotationPress cannot follow",
        DeltaPress(**SMALL, then=kvpress.KeyRerotationPress(kvpress.KnormPress(0.5))),
    ),
    "unequal layers": Refused("PyramidKVPress cannot follow", DeltaPress(**SMALL, then=kvpress.PyramidKVPress(0.5))),
    "itself": Refused("DeltaPress cannot follow", DeltaPress(**SMALL, then=DeltaPress(**SMALL))),
    "windows": Refused("sliding-window", DeltaPress(**SMALL, then=follower("KnormPress")), "gemma3"),
    "no cache": Refused(
        "without a cache", DeltaPress(**SMALL, then=follower("KnormPress")), options=(("use_cache", False),)
    ),
    "padding": Refused(
        "one by one",
        DeltaPress(**SMALL, then=follower("KnormPress")),
        options=(("attention_mask", (torch.arange(40) > 3).long()[None]),),
    ),
    "static cache": Refused(
        "pass a DynamicCache", DeltaPress(**SMALL), options=(("past_key_values", StaticCache(tiny().config, 64)),)
    ),
    "a loss": Refused("labels are not supported", DeltaPress(**SMALL), options=(("labels", IDS),)),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case: Refused) -> None:
    model = tiny(case.variant)
    model(IDS)
    before = attributes(model)
    with pytest.raises(UnsupportedError, match=re.escape(case.advice)), case.press(model):
        model(**{"input_ids": IDS, **dict(case.options)})
    if not isinstance(case.press, (kvpress.ComposedPress, kvpress.PrefillDecodingPress)):  # these leave a module behind
        assert attributes(model) == before


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("then", [None, "KnormPress"])
def test_a_kv_press_beside_a_halting_one_is_refused(then: str | None, outside: bool) -> None:
    model = tiny()
    halt, other = DeltaPress(**SMALL, then=then and follower(then)), kvpress.KnormPress(0.5)
    first, second = (other, halt) if outside else (halt, other)
    with first(model), second(model), pytest.raises(UnsupportedError, match="KnormPress is active"):
        model(IDS, past_key_values=DynamicCache())
