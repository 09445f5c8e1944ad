"""Text that is not the command's own is printed as it is: rich's markup, emoji codes and terminal controls are none."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from deltahalt.answering import ask
from deltahalt.answering.ask import Answer
from deltahalt.cli import base
from deltahalt.cli.answer_table import show_answers
from helpers.command import deltahalt

SOURCE = Path(base.__file__).parents[1]
HOSTILE = "[/INST] [bold]text[/bold] :smile: [red] \\[x] [link=http://a]b[/link] 100 'a' http://b"


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("stream", ["out", "log"])
def test_a_console_prints_lines_tables_and_titles_as_they_are(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = getattr(base, stream)
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    shown = "".join(capsys.readouterr())
    assert shown.count(HOSTILE) == 5
    assert "\x1b" not in shown


@pytest.mark.usefixtures("wide")
def test_answers_policies_and_their_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(HOSTILE, 9, 1, (9, 9), prefill_seconds=2.0, decode_seconds=0.0, flops=10**12, cache_bytes=10**6)
    show_answers(base.out, {"[bold]profile[/].json": answer})
    shown = capsys.readouterr().out
    assert HOSTILE in shown
    assert "[bold]profile[/].json" in shown


def test_what_a_terminal_would_obey_is_shown_as_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    base.out.print("a\x1b[2Jb\x07c\rd\x9be\udce9f\nh")
    assert capsys.readouterr().out == r"a\x1b[2Jb\x07c\rd\x9be\udce9f" + "\nh\n"


def test_progress_is_printed_as_it_is() -> None:
    with base.progress() as bar:
        bar.add_task(HOSTILE)
        (column, *_), (task,) = bar.columns, bar.tasks
        assert column.render(task).plain == HOSTILE  # type: ignore[union-attr]
    status = base.status(HOSTILE)
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(status.renderable)
    assert HOSTILE in console.export_text()


def test_nothing_prints_but_through_these_consoles() -> None:
    """No other module makes a console, a status or a bar of its own, which would read markup; these three do not."""
    made = re.compile(r"\bConsole\(|\bProgress\(|\.status\(|\bprint\(.*markup|from rich import print|rprint")
    found = {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if made.search(line)
    }
    assert found == {"cli/base.py", "loading/bars.py", "loading/bundled.py"}
    assert all("markup=False" in (SOURCE / file).read_text(encoding="utf-8") for file in found)


@pytest.mark.usefixtures("wide")
def test_the_command_prints_names_and_answers_as_they_are(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "[red]report[bold] :smile:.txt"
    document.write_text("A module is a file of definitions. " * 9)
    real = ask.ask
    monkeypatch.setattr(ask, "ask", lambda *given, **options: replace(real(*given, **options), text=HOSTILE))
    policy = "dash:start=1,keep_first=4,keep_last=8"
    call = ("run", "--model", str(tiny_folder), "--question", "[/INST]?", "--policy", policy, "--max-new-tokens", "2")
    assert deltahalt(*call, "--document", str(document)) == 0
    assert HOSTILE in capsys.readouterr().out
    assert deltahalt(*call, "--document", str(document) + "x") == 2
    assert f"cannot read {document}x" in capsys.readouterr().err
