"""Every policy and method is described: what each option means, its source, and an example."""

from typing import Any

import pytest

from deltahalt.methods.registry import METHODS
from deltahalt.policies.describe import describe


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_every_option_has_a_meaning(kind: Any) -> None:
    assert [option.name for option in describe(kind) if not option.meaning] == []


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_a_docstring_names_errors_and_source_and_has_an_example(kind: Any) -> None:
    text = vars(kind)["__doc__"]
    assert [part for part in ("    Raises:\n", "    Source:\n", "    Example:\n", ">>> ") if part not in text] == []
