"""Progress bars: bytes of a download, and one bar in the place of those of transformers."""

import io
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from rich.console import Console

from deltahalt.loading import bars
from deltahalt.loading.models import load


def test_a_download_shows_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "GLANCE", 0.01)
    shown = io.StringIO()
    (tmp_path / "pip-unpack").mkdir()
    with bars.download_bar(Console(file=shown, force_terminal=True, width=100), tmp_path, 98_362_432):
        (tmp_path / "pip-unpack" / "wheel").write_bytes(bytes(5_000_000))
        until = monotonic() + 5
        while "5.0/98.4 MB" not in shown.getvalue() and monotonic() < until:
            sleep(0.02)
    assert "5.0/98.4 MB" in shown.getvalue()


def test_a_file_that_vanishes_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "there").write_bytes(b"123")
    assert bars.bytes_in(tmp_path) == 3


def host_with_a_bar() -> Any:
    """The module of transformers that shows a bar while it loads weights."""
    import transformers.core_model_loading as host

    if not hasattr(host, "tqdm"):
        pytest.skip("this version of transformers shows another bar while it loads weights")
    return host


def test_the_bars_of_transformers_are_replaced_while_a_model_is_loaded(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = host_with_a_bar()
    before = host.tqdm
    load(tiny_folder)
    assert host.tqdm is before
    assert "it/s" not in capsys.readouterr().err


def test_they_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_with_a_bar()
    before = host.tqdm

    def fail() -> None:
        with bars.loading_bars("tiny"):
            assert list(host.tqdm([1, 2], desc="Loading weights")) == [1, 2]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert host.tqdm is before
