"""What CONTRIBUTING says of adding a policy and a family is done to the letter, in a copy of this repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = "The help of the standard library says: " + "a module is a file of definitions. " * 6


def section(title: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), flags=re.DOTALL)


def run(folder: Path, *command: str) -> str:
    """The output of a command of CONTRIBUTING in `folder`, whose packages are those that it finds first."""
    start = [sys.executable, "-m", "deltahalt"] if command[0] == "deltahalt" else [sys.executable]
    path = os.pathsep.join([str(folder / "src"), str(folder)])
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    line = [*start, *command[1:]]
    done = subprocess.run(line, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what CONTRIBUTING adds to."""
    folder = tmp_path / "copy"
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def follow(title: str, copy: Path, **names: str) -> str:
    """Write the blocks that name a file to it, at its end where it exists, and run the commands; what they print."""
    for block in blocks(title, "python"):
        path = copy / re.match(r"# (\S+)\n", block)[1]  # type: ignore[index]
        with path.open("a", encoding="utf-8") as file:
            file.write(block)
    commands = [shlex.split(line) for block in blocks(title, "sh") for line in block.splitlines()]
    return "".join(run(copy, *(names.get(word, word) for word in command)) for command in commands)


def test_a_policy_is_one_file_and_its_test(copy: Path, tiny_folder: Path) -> None:
    (copy / "document.txt").write_text(TEXT, encoding="utf-8")
    printed = follow("Add a policy", copy, MODEL=str(tiny_folder), DOCUMENT="document.txt")
    assert "1 passed" in printed
    assert "longest states stay active" in printed
    assert "state-norm:power=2" in printed


def test_a_family_is_one_file_and_its_configuration(copy: Path) -> None:
    printed = follow("Add a model family", copy)
    assert re.search(r"\d+ passed", printed)


def test_a_policy_of_another_package_is_found_by_name(tmp_path: Path, tiny_folder: Path) -> None:
    (code, *_), (table,) = blocks("Add a policy", "python"), blocks("Add a policy", "toml")
    (entry,) = table.splitlines()[1:]
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "my_package.py").write_text(f"from deltahalt import Dash, VisionDash\n{code}", encoding="utf-8")
    (tmp_path / "document.txt").write_text(TEXT, encoding="utf-8")
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        f"[deltahalt.policies]\n{entry.replace(chr(34), '')}\nbroken = no_module:No\n"
    )
    listed = run(tmp_path, "deltahalt", "policies")
    assert "longest states stay active" in listed
    assert "'broken' of deltahalt.policies cannot be loaded" in listed
    assert listed.count("cannot be loaded") == 1  # its own import of our classes does not look for it again
    asked = ("--document", "document.txt", "--question", "Who wrote it?", "--policy", "state-norm:power=2")
    assert "state-norm:power=2" in run(tmp_path, "deltahalt", "run", "--model", str(tiny_folder), *asked)
