"""No command loses a file: of an input, of somebody else, or of what it has measured itself."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from deltahalt.lab.evaluation.sweep import SweepRow
from deltahalt.lab.rows.base import append_rows, read_rows
from deltahalt.profile import Choice, Profile, Signature
from helpers.extras import needs_matplotlib
from helpers.sweep_rows import ROWS
from helpers.viewing import DASH, DOCUMENT, QUESTION

Command = Callable[..., int]
VIEW = ("view", "--model", "no/such", "--question", "?")
CALIBRATE = ("calibrate", "--model", "no/such")
needs_full_disk = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="there is no /dev/full here, which a full disk is tried with"
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Somebody's file."""
    file = tmp_path / "notes.svg"
    file.write_text("Somebody's notes about deltahalt view and deltahalt plot.\n")
    return file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    append_rows(file, ROWS)
    return file


def other_names(file: Path) -> Iterator[Path]:
    """The same file by other names: itself, a relative path, a symbolic link and a hard link."""
    yield file
    yield file.parent / ".." / file.parent.name / file.name
    link, hard = file.with_name(f"link{file.suffix}"), file.with_name(f"hard{file.suffix}")
    link.symlink_to(file)
    yield link
    os.link(file, hard)
    yield hard
    yield Path(os.path.relpath(file))


@needs_matplotlib
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_output_that_is_an_input_is_refused_by_any_name(
    force: tuple[str, ...], deltahalt: Command, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = text.read_bytes()
    sample, picture = text.with_name("rows.svg"), text.with_name("picture.svg")
    sample.write_bytes(before)
    picture.write_bytes(before)
    for given, call in {
        text: (*VIEW, "--document", text, "--out"),
        picture: (*VIEW, "--image", picture, "--out"),
        sample: ("plot", sample, "--out"),
    }.items():
        for name in other_names(given):
            assert deltahalt(*call, name, *force) == 2
            assert f"{name} is the file {given}, which this command uses" in capsys.readouterr().err
        for link in (given.with_name(f"link{given.suffix}"), given.with_name(f"hard{given.suffix}")):
            link.unlink()
        assert given.read_bytes() == before


@needs_matplotlib
@pytest.mark.parametrize(
    "call",
    [
        "calibrate --model m --data {0} --out {0}",
        "calibrate --model m --out {0} --rows {0}",
        "calibrate --model {0} --out {0}",
        "calibrate --model m --data {0} --out new.json --rows {0}",
        "sweep --model m --data {0} --rows {0}",
        "sweep --model m --rows {0} --plot {0}",
        "sweep --model m --data {0} --rows new.jsonl --plot {0}",
        "observe --model m --data {0} --rows {0}",
        "bench --text {0} --model m --rows {0}",
        "vision-sweep --model {0} --rows {0}",
        "eval --tasks ruler --model {0} --rows {0}",
        "shapes --model {0} --rows {0}",
        "embed --model {0} --rows {0}",
    ],
)
def test_no_command_takes_one_file_for_two_things(
    call: str, deltahalt: Command, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = text.read_bytes()
    assert deltahalt(*(part.format(text) for part in call.split())) == 2
    assert f"{text} is the file {text}, which this command uses: name another file to write" in capsys.readouterr().err
    assert text.read_bytes() == before


@needs_matplotlib
@pytest.mark.parametrize(
    "call",
    [
        "view --model m --document - --question ? --out {0}",
        "plot {1} --out {0}",
        "calibrate --model m --out {0}",
        "sweep --model m --rows new.jsonl --plot {0}",
    ],
)
def test_a_file_of_somebody_else_is_refused(
    call: str, deltahalt: Command, text: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = text.read_bytes()
    assert deltahalt(*(part.format(text, rows) for part in call.split())) == 2
    assert (
        f"{text} exists and was not written by this command, so it is not overwritten: name another"
        in capsys.readouterr().err
    )
    assert text.read_bytes() == before


@pytest.mark.parametrize(
    "call",
    [
        "sweep --model m --rows {0}",
        "observe --model m --rows {0}",
        "vision-sweep --model m --rows {0}",
        "bench --model m --rows {0}",
        "eval --model m --tasks ruler --rows {0}",
        "shapes --model m --rows {0}",
        "embed --model m --rows {0}",
        "calibrate --model m --out new.json --rows {0}",
    ],
)
def test_rows_are_added_to_no_other_file(
    call: str, deltahalt: Command, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = text.read_bytes()
    assert deltahalt(*(part.format(text) for part in call.split())) == 2
    assert f"{text}, line 1: it is not JSON" in capsys.readouterr().err
    assert text.read_bytes() == before


@needs_matplotlib
def test_a_command_writes_over_its_own_file_and_over_others_if_forced(
    deltahalt: Command, text: Path, rows: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT)
    view = ("view", "--model", tiny_folder, "--document", document, "--question", QUESTION, "--policies", DASH)
    for suffix, call in {".svg": ("plot", rows), ".png": ("plot", rows), ".html": view}.items():
        out, theirs = tmp_path / f"out{suffix}", tmp_path / f"theirs{suffix}"
        theirs.write_bytes(text.read_bytes())
        (tmp_path / f"empty{suffix}").touch()
        assert deltahalt(*call, "--out", out) == 0
        assert deltahalt(*call, "--out", out) == 0
        assert deltahalt(*call, "--out", tmp_path / f"empty{suffix}") == 0
        assert deltahalt(*call, "--out", theirs) == 2
        assert theirs.read_bytes() == text.read_bytes()
        assert deltahalt(*call, "--out", theirs, "--force") == 0
        assert theirs.read_bytes() == out.read_bytes()
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".part")]


def test_a_profile_is_known_by_its_content(
    deltahalt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signature = Signature("llama", 2, 8, (1.0,))
    profile = tmp_path / "profile.json"
    Profile("m", signature, (Choice("dash", 1.7, 0.1, 1.0),), {}).write(profile)
    assert deltahalt(*CALIBRATE, "--out", profile) == 2
    assert "no/such" in capsys.readouterr().err  # the model is what it complains of
    for content in (b'{"format": 1}', b"[" * 100_000, b"\xff\x00", b"{}"):
        profile.write_bytes(content)
        assert deltahalt(*CALIBRATE, "--out", profile) == 2
        assert "was not written by this command" in capsys.readouterr().err
        assert profile.read_bytes() == content


@needs_full_disk
def test_on_a_full_disk_the_bench_is_shown_and_the_error_is_one_line(
    deltahalt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--shape", "4,32,48,2,1,16", "--lengths", "40", "--new-tokens", "1", "--repeats", "1")
    assert deltahalt("bench", *shape, "--policies", "dash", "--rows", "/dev/full") == 2
    shown = capsys.readouterr()
    assert "40 tokens" in shown.out
    assert shown.err.strip().splitlines()[-1].startswith("deltahalt: cannot write /dev/full: No space left on device")


@needs_full_disk
@pytest.mark.parametrize("command", ["view", "calibrate", "sweep", "observe"])
def test_on_a_full_disk_every_command_ends_in_one_line(
    command: str, deltahalt: Command, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, data = tmp_path / "document.txt", tmp_path / "samples.jsonl"
    document.write_text(DOCUMENT)
    data.write_text(json.dumps({"task": "tides", "prompt": "The tide is in. " * 12, "answer": None}))
    given = {
        "view": ("--document", document, "--question", "?", "--out", "/dev/full"),
        "calibrate": ("--data", data, "--rows", tmp_path / "rows.jsonl", "--out", "/dev/full"),
        "sweep": ("--data", data, "--policies", "dash", "--rows", "/dev/full"),
        "observe": ("--data", data, "--rows", "/dev/full"),
    }[command]
    assert deltahalt(command, "--model", tiny_folder, *given) == 2
    shown = capsys.readouterr()
    assert "deltahalt: cannot write /dev/full: No space left on device" in shown.err
    assert "Traceback" not in shown.err
    assert {"view": "", "calibrate": "NLL change", "sweep": "agreement", "observe": "tides"}[command] in shown.out


def interrupted(values: list[Any]) -> Callable[..., Iterator[Any]]:
    """A function that yields these, and then is interrupted."""

    def run(*_: Any, **__: Any) -> Iterator[Any]:
        yield from values
        raise KeyboardInterrupt

    return run


def test_ctrl_c_leaves_what_the_bench_measured_until_then(
    deltahalt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltahalt.lab.bench import measure

    run_once, runs = measure.run_once, iter(range(14))  # a warm-up of three runs, three rounds, two runs

    def run(*given: Any) -> Any:
        if next(runs, None) is None:
            raise KeyboardInterrupt
        return run_once(*given)

    monkeypatch.setattr(measure, "run_once", run)
    rows = tmp_path / "rows.jsonl"
    shape = ("--shape", "4,32,48,2,1,16", "--lengths", "40", "--new-tokens", "1", "--repeats", "9")
    assert deltahalt("bench", *shape, "--policies", "dash", "--rows", rows) == 130
    shown = capsys.readouterr()
    assert "40 tokens" in shown.out
    assert shown.err.strip().splitlines()[-1] == "deltahalt: interrupted"
    (row,) = (json.loads(line) for line in rows.read_text().splitlines())
    assert row["repeats"] == 3


@pytest.mark.parametrize("command", ["sweep", "observe"])
def test_ctrl_c_leaves_the_rows_measured_until_then(
    command: str,
    deltahalt: Command,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deltahalt.lab.evaluation import observe, sweep

    data, rows = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl"
    samples = [{"task": task, "prompt": "The tide is in. " * 12, "answer": "at noon"} for task in ("one", "two")]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if command == "sweep":
        monkeypatch.setattr(sweep, "sweep_sample", interrupted([ROWS[0]]))
    else:
        given = iter([observe.observe_sample])

        def observed(*sample: Any) -> Any:
            one = next(given, None)
            if one is None:
                raise KeyboardInterrupt
            return one(*sample)

        monkeypatch.setattr(observe, "observe_sample", observed)
    policies = ("--policies", "dash uniform") if command == "sweep" else ()
    assert deltahalt(command, "--model", tiny_folder, "--data", data, "--rows", rows, *policies) == 130
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-1] == "deltahalt: interrupted"
    assert ("dense" if command == "sweep" else "one") in shown.out
    (line,) = rows.read_text().splitlines()
    if command == "sweep":
        assert read_rows(rows, SweepRow) == [ROWS[0]]
        assert asdict(ROWS[0]).items() <= json.loads(line).items()


@pytest.mark.filterwarnings("default")
def test_half_a_row_is_one_line_of_warning_and_the_rest_is_read(
    deltahalt: Command, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = rows.read_text()
    assert deltahalt("report", rows) == 0
    table = capsys.readouterr().out
    rows.write_text(whole + '{"kind": "sw')
    assert deltahalt("report", rows) == 0
    shown = capsys.readouterr()
    assert shown.out == table
    (line,) = shown.err.splitlines()
    assert line.startswith(f"deltahalt: {rows}, line 5: this row is incomplete")


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"\x89PNG\r\n\x1a\n\x00", "it is not UTF-8 text"), (b"", "there are no rows")]
)
def test_report_refuses_what_holds_no_rows(
    content: bytes, complaint: str, deltahalt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(content)
    assert deltahalt("report", tmp_path / "file") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


@pytest.mark.parametrize(
    "call",
    [
        "bench --policies",
        "bench --lengths",
        "bench --batch-sizes",
        "sweep --rows r.jsonl --policies",
        "sweep --rows r.jsonl --starts",
        "sweep --rows r.jsonl --ratios",
        "embed --policies",
        "shapes --policies",
        "shapes --shapes",
        "shapes --tokens",
        "vision-sweep --model m --rows r.jsonl --methods",
        "vision-sweep --model m --rows r.jsonl --retains",
        "view --question ? --document d --out p.html --policies",
        "eval --tasks",
        "eval --tasks ruler --lengths",
        "calibrate --out p.json --layers",
        "calibrate --out p.json --target-speedup",
        "flops --shape qwen2.5-7b --lengths",
    ],
)
@pytest.mark.parametrize("empty", ["", " ", ","])
def test_an_empty_list_is_refused(
    call: str, empty: str, deltahalt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert deltahalt(*call.split(), empty) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("deltahalt: ")
    assert not list(tmp_path.iterdir())
