"""Whether a file can be written is known before there is anything to write."""

import os
from pathlib import Path

import pytest

from deltahalt import InputError
from deltahalt.files import require_writable


def test_a_file_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    for file in (tmp_path / "old", tmp_path / "new" / "folder" / "file", Path("file")):
        require_writable(file)
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


def test_a_folder_and_what_lies_below_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for file in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"cannot write to {file}, since .* is a f.*: give another path"):
            require_writable(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: run the tests as another user")
@pytest.mark.parametrize("rights", [0o000, 0o500], ids=oct)
def test_a_folder_of_somebody_else_is_refused(rights: int, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(rights)
    with pytest.raises(InputError, match="cannot write to"):
        require_writable(folder / "file")
