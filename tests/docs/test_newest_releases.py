"""`make test-newest` says which of the installed releases are newer than the tested ones, and which may be to blame."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import newest_releases

ROOT = Path(__file__).parents[2]
PINS = """
# a comment
torch==2.13.0
transformers==5.24.0; python_version >= "3.10"
transformers==5.20.2; python_version < "3.10"
lm-eval==0.4.13 # another
"""
TESTED = {"torch": "2.13.0", "transformers": "5.24.0", "lm-eval": "0.4.13"}


def test_the_pins_of_this_interpreter() -> None:
    assert newest_releases.pins(PINS) == TESTED


def test_the_newer_releases() -> None:
    installed = {"transformers": "5.25.0", "torch": "2.13.0+cpu", "lm-eval": "0.4.9"}
    assert newest_releases.newer(installed, TESTED | {"gguf": "1"}) == ["transformers 5.25.0 (tested: 5.24.0)"]


def test_a_failure_names_the_release_that_is_new() -> None:
    message = newest_releases.verdict(1, ["transformers 5.25.0 (tested: 5.24.0)"])
    assert message is not None
    assert "did not exist when the pinned ones were tested: transformers 5.25.0 (tested: 5.24.0)" in message
    assert "tested before" in (newest_releases.verdict(1, []) or "")
    assert newest_releases.verdict(0, ["transformers 5.25.0 (tested: 5.24.0)"]) is None


@pytest.mark.parametrize("status", [0, 1])
def test_the_whole_run(status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    versions = {"transformers": "99.0", "torch": "2.13.0"}
    monkeypatch.setattr(newest_releases, "_installed", lambda names: {name: versions[name] for name in versions})
    monkeypatch.setattr(
        newest_releases.subprocess,
        "run",
        lambda command, **_: calls.append(command) or SimpleNamespace(returncode=status),
    )
    if status:
        with pytest.raises(SystemExit, match=r"transformers 99\.0"):
            newest_releases.main([])
    else:
        newest_releases.main([])
    assert "installed: transformers 99.0, torch 2.13.0" in capsys.readouterr().out
    assert calls[0][:3] == [sys.executable, "-m", "pytest"]
    assert all((ROOT / path).exists() for path in newest_releases.TESTS)
    assert set(newest_releases.TESTS) < set(calls[0])


def test_it_is_part_of_what_runs_before_a_merge() -> None:
    assert "\nmake test-newest\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
