"""What the tests of vLLM share. `helpers.vllm_engine` skips where vLLM is not installed, so it is imported late."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `model`."""
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """A tiny Llama, saved in `folder`."""
    from helpers.vllm_engine import saved

    return saved(folder)
