"""The command's help, its version, and errors in how it is called."""

import re
from pathlib import Path

import pytest
import typer.main

from deltahalt import __version__, cli
from helpers.command import deltahalt

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_of_every_command(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deltahalt(command, option) == 0
    shown = capsys.readouterr().out
    assert "-h, --help" in shown
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for parameter in typer.main.get_command(cli.app).commands[command].params:  # type: ignore[attr-defined]
        assert parameter.opts[0] in words or parameter.param_type_name == "argument"
        assert " ".join(parameter.help.split()) in re.sub(r"- (?=\w)", "-", words) or parameter.help in words


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("--version") == 0
    assert capsys.readouterr().out == f"deltahalt {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_commands_are_grouped_by_what_they_are_for(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt(*arguments) == (0 if arguments else 2)
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{head}:") for head in ("Ask", "Measure", "Show")]
    assert places == sorted(places)
    listed = re.findall(r"^  ([a-z-]+)  ", shown[places[0] :], re.MULTILINE)
    assert sorted(listed) == COMMANDS
    assert "..." not in shown[places[0] :]  # no help is cut short


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sweep", "--limit", "0"], "Invalid value for '--limit'"),
        (["sweep", "--polici", "x"], "--policies"),
        (["run", "--question", "q"], "'--document'"),
        (["nothing"], "'nothing'"),
        (["report"], "'rows"),
        (["report", "--frontier=3", "rows"], "--frontier"),
    ],
)
def test_a_wrong_call_is_one_line_that_names_the_help(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deltahalt(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deltahalt: ")
    assert complaint.lower() in line.lower()
    assert "--help)" in line


def test_the_readme_says_how_to_install_and_where_the_command_is() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "pip install" in readme
    assert ".venv/bin/deltahalt" in readme
    assert "DELTAHALT_CACHE" in readme
