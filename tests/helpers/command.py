"""Runs our command in this process."""

import sys

import pytest

TEXT = "The help of the standard library says: " + "a module is a file of definitions. " * 6  # a document


def deltahalt(*arguments: object) -> int:
    """Run the command with these arguments; returns its exit status."""
    from deltahalt import cli  # its consoles keep the width that they find when they are imported

    sys.argv = ["deltahalt", *map(str, arguments)]
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)
