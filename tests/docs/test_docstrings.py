"""The examples in docstrings run and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import deltahalt

SOURCE = Path(deltahalt.__file__).parent
FILES = sorted(file for file in SOURCE.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8"))
OF_EXTRAS = SOURCE / "integrations"  # these files import packages that may be missing


@pytest.mark.parametrize("file", [file for file in FILES if OF_EXTRAS not in file.parents], ids=lambda file: file.stem)
def test_examples_of_docstrings(file: Path) -> None:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    module = import_module(".".join(part for part in parts if part != "__init__"))
    public = {name: getattr(deltahalt, name) for name in deltahalt.__all__}
    assert not doctest.testmod(module, extraglobs=public).failed
