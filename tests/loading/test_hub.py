"""A hub that cannot be reached is reported at once, and not asked again and again."""

import socket
from pathlib import Path
from time import monotonic

import pytest
from transformers import LlamaConfig

from deltahalt import LLMLingua2, ModelError
from deltahalt.loading.hub import require_hub
from deltahalt.loading.models import load, load_config


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an empty cache, where nothing listens at the hub's address."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("deltahalt.loading.hub.getproxies", dict)


@pytest.mark.usefixtures("unreachable")
def test_a_hub_id_is_refused_at_once() -> None:
    begin = monotonic()
    for refused in (
        lambda: load("someone/unknown"),
        lambda: load_config("unknown"),
        lambda: LLMLingua2(encoder="someone/encoder").check(LlamaConfig()),
    ):
        with pytest.raises(ModelError, match=r"hub at 127\.0\.0\.1 cannot be reached"):
            refused()
    assert monotonic() - begin < 10


@pytest.mark.usefixtures("unreachable", "offline")
def test_a_local_folder_and_a_proxy_need_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_hub(str(tmp_path))
    require_hub("not a name at all")
    monkeypatch.setattr("deltahalt.loading.hub.getproxies", lambda: {"https": "http://127.0.0.1:9"})
    require_hub("someone/unknown")


@pytest.mark.usefixtures("unreachable")
def test_a_hub_that_answers_is_left_to_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        require_hub("someone/unknown")
