"""Recipes as commands: how each is called, and what is missing, in place of a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


def called(recipe: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, RECIPES / recipe, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False, text=True)


@pytest.mark.parametrize(
    "recipe",
    ["choose_again", "mini_longbench", "new_lengths", "page_tables", "paper_tables", "smoke_data", "vision_efficiency"],
)
def test_help_is_the_usage_and_nothing_is_written(recipe: str, tmp_path: Path) -> None:
    done = called(f"{recipe}.py", "-h", cwd=tmp_path)
    assert done.returncode == 0
    assert f"usage: {recipe}.py" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("mini_longbench.py none out", "there is no folder none/pred_data/example"),
        ("choose_again.py rows.jsonl profile.json", "there is no file rows.jsonl"),
        ("vision_efficiency.py --images 2", "arguments are required: rows"),
    ],
)
def test_what_is_missing_is_told_in_a_line(call: str, complaint: str, tmp_path: Path) -> None:
    done = called(*call.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
