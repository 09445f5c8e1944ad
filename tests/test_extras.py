"""Tests run where matplotlib and Pillow, which are extras, are not installed."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.extras import REASONS

TESTS = Path(__file__).parent


def test_without_extras_other_tests_run_and_those_that_need_one_say_so() -> None:
    files = ["lab/test_pareto.py", "lab/test_viewer_pictures.py", "lab/test_plot_command.py", "test_files.py"]
    options = ["-p", "helpers.without_extras", "-rs", "-q", "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(TESTS / file) for file in files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])},
    )
    assert done.returncode == 0, done.stdout
    for reason in REASONS.values():
        assert reason in done.stdout
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
