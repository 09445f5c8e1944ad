"""Run tests on the newest release of every dependency, and name the releases that are newer than the tested ones."""

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/engine/test_versions.py",
    "tests/engine/test_identity.py",
    "tests/engine/test_oracle.py",
    "tests/engine/test_cache.py",
    "tests/engine/test_turns.py",
    "tests/engine/test_blocks.py",
    "tests/vision/test_marks.py",
    "tests/answering",
    "tests/cli/test_cli.py",
    "tests/cli/test_describe.py",
    "tests/cli/test_measuring.py",
)
LEFT_OUT = "not real_weights"  # these take minutes each, and run on the pinned versions


def pins(text: str) -> dict[str, str]:
    """The version that each line `name==version; marker` of a constraints file pins in this interpreter."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    requirements = [Requirement(line) for line in lines if line]
    return {
        each.name: next(iter(each.specifier)).version
        for each in requirements
        if each.marker is None or each.marker.evaluate()
    }


def newer(installed: dict[str, str], tested: dict[str, str]) -> list[str]:
    """The installed releases that are newer than those tested, in words."""
    return [
        f"{name} {installed[name]} (tested: {old})"
        for name, old in tested.items()
        if name in installed and Version(Version(installed[name]).public) > Version(old)  # 2.13.0+cpu is 2.13.0
    ]


def verdict(status: int, releases: list[str]) -> str | None:
    """What is wrong after the tests ended with `status`; None where nothing is."""
    if status == 0:
        return None
    if not releases:
        return "the tests fail on the newest releases, which are those that were tested before"
    return (
        f"the tests fail with releases that did not exist when the pinned ones were tested: {', '.join(releases)}. "
        "Make the code run with them, then pin them in constraints.txt"
    )


def _installed(names: list[str]) -> dict[str, str]:
    present = {canonicalize_name(each.name): each.version for each in distributions()}
    return {name: present[canonicalize_name(name)] for name in names if canonicalize_name(name) in present}


def main(arguments: list[str]) -> None:
    """Print what is installed, run the tests with these arguments of pytest, and say which releases are to blame."""
    tested = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    installed = _installed(list(tested))
    print("installed:", ", ".join(f"{name} {number}" for name, number in installed.items()), flush=True)  # noqa: T201
    releases = newer(installed, tested)
    print("newer than tested:", ", ".join(releases) or "none", flush=True)  # noqa: T201
    warning = "default::deltahalt.errors.UntestedVersionWarning"
    command = [sys.executable, "-m", "pytest", "-q", "-m", LEFT_OUT, "-W", warning, *arguments, *TESTS]
    message = verdict(subprocess.run(command, cwd=ROOT, check=False).returncode, releases)
    if message:
        sys.exit(re.sub(r"\s+", " ", message))


if __name__ == "__main__":
    main(sys.argv[1:])
