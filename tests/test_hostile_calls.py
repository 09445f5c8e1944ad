"""Hostile calls of the Python API: a typed error at once, and the model as it was."""

from time import monotonic
from typing import Any

import pytest

from deltahalt.errors import DeltahaltError
from deltahalt.loading.models import LoadedModel
from helpers.hostile.calls import CALLS
from helpers.tiny import attributes

SECONDS = 10.0


@pytest.mark.parametrize("name", CALLS)
def test_a_hostile_call_is_a_typed_error_that_leaves_the_model_alone(
    name: str, loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call, kind, complaint = CALLS[name]
    before: Any = attributes(loaded_tiny.model)
    begin = monotonic()
    with pytest.raises(kind, match=complaint) as caught:
        call(loaded_tiny)
    assert monotonic() - begin < SECONDS
    assert isinstance(caught.value, DeltahaltError)
    assert "\n" not in str(caught.value)
    assert attributes(loaded_tiny.model) == before
