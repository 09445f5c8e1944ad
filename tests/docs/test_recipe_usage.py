"""Recipes and tools as commands: how each is called, and one line in place of a traceback for what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def called(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "recipes" / script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False, text=True)


def test_the_help_of_a_recipe_is_its_usage_and_writes_nothing(tmp_path: Path) -> None:
    done = called("mini_longbench.py", "-h", cwd=tmp_path)
    assert done.returncode == 0
    assert "usage: mini_longbench.py" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", ["page_tables", "paper_tables", "smoke_data", "vision_tables"])
def test_the_help_of_a_tool_is_its_usage(tool: str) -> None:
    command = [sys.executable, "-m", f"tools.{tool}", "-h"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0
    assert f"usage: python -m tools.{tool}" in done.stdout


def test_a_missing_folder_is_named_in_one_line(tmp_path: Path) -> None:
    done = called("mini_longbench.py", "none", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no folder none/pred_data/example" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
