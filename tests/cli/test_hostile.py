"""Hostile inputs to every command: one line that says what is wrong, at once, and no file lost."""

import importlib.util
import shlex
from pathlib import Path
from time import monotonic

import pytest

from helpers.command import deltahalt
from helpers.hostile.asking import ASKING
from helpers.hostile.measuring import EVALUATING, MEASURING, SHOWING
from helpers.hostile.place import contents, make_place

SMALL = Path(__file__).parents[2] / "assets" / "small-vlm"
SECONDS = 10.0
COMMANDS = [*ASKING, *MEASURING, *SHOWING, *EVALUATING]
NEEDED = {"look": "PIL", "vision-sweep": "PIL", "plot": "matplotlib", "eval": "lm_eval", "--image": "PIL"}


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, dict[str, str]]:
    """A folder of good and bad files, and their names."""
    folder = tmp_path_factory.mktemp("hostile")
    return folder, make_place(folder, tiny_folder, SMALL)


@pytest.fixture
def place(filled: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, str]]:
    """That folder to run in, without a network, and where no model may be loaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(filled[0])
    for load in ("load", "load_vision"):
        monkeypatch.setattr(f"deltahalt.loading.models.{load}", lambda *_, **__: pytest.fail("a model was loaded"))
    return filled


@pytest.mark.parametrize(
    ("command", "complaint"), COMMANDS, ids=lambda text: text[:60].encode("unicode-escape").decode()
)
def test_a_hostile_command_is_refused_in_one_line_at_once(
    command: str, complaint: str, place: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = place
    arguments = [word.replace("|", " ").format(**names) for word in command.split(" ")]
    for word, package in NEEDED.items():
        if word in arguments and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    before, begin = contents(folder), monotonic()
    assert deltahalt(*arguments) == 2
    assert monotonic() - begin < SECONDS
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("deltahalt: ")
    assert complaint in line
    assert contents(folder) == before


def test_there_are_as_many_as_were_wanted() -> None:
    commands = {shlex.quote(command) for command, _ in COMMANDS}
    assert len(commands) == len(COMMANDS) >= 150
