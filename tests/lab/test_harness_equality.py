"""The recipe that holds lm-eval's `hf` against `deltahalt`: equal models are, a difference is seen."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

from deltahalt.integrations.lm_eval import DeltahaltLM
from deltahalt.lab.figures.tables import KINDS, markdown
from deltahalt.lab.harness.lookup import find_tasks
from deltahalt.lab.rows.base import append_rows, read_rows

ROOT = Path(__file__).parents[2]
POLICY = "dash:start=2,keep_first=4,keep_last=8"
HARBOURS = ("Cork", "Riga", "Oslo", "Turin", "Lima")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "recipes")
    return importlib.import_module("harness_equality")


@pytest.fixture
def tasks(recipe: ModuleType, tmp_path: Path) -> list[Any]:
    rows = [
        {"input": "The tide is in. " * count, "qa_pairs": [{"Q": f"Is it {'so ' * count}?", "A": place}], "output": ""}
        for count, place in enumerate(HARBOURS, 1)
    ]
    (tmp_path / "loogle").mkdir()
    (tmp_path / "loogle" / "shortdep_qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [*find_tasks(["loogle_shortdep_qa"], data=tmp_path, bertscore="none"), recipe.choice(tmp_path)]


def test_dense_is_equal_in_every_sample_and_score(recipe: ModuleType, tasks: list[Any], tiny_folder: Path) -> None:
    rows = list(recipe.compare(str(tiny_folder), tasks, 5, 400, 6))
    assert [(row.task, row.batch_size) for row in rows] == [
        (task, batch) for batch in (1, 4) for task in ("loogle_shortdep_qa", "loogle_shortdep_choice")
    ]
    for row in rows:
        assert row.equal == row.samples == 5
        assert row.hf == row.deltahalt
        assert row.responses > 1
        assert row.model == tiny_folder.name
    assert set(rows[1].hf) == {"acc", "acc_norm"}


def test_what_differs_is_not_equal_and_is_told(
    recipe: ModuleType, tasks: list[Any], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = recipe.get_model
    monkeypatch.setattr(
        recipe, "get_model", lambda name: own(name) if name == "hf" else partial(DeltahaltLM, policy=POLICY)
    )
    generated, scored, *_ = recipe.compare(str(tiny_folder), tasks, 5, 400, 6)
    assert generated.equal < generated.samples
    assert scored.equal == 0
    append_rows(tmp_path / "rows.jsonl", [scored])
    (read,) = read_rows(tmp_path / "rows.jsonl", *KINDS)
    assert read == scored
    line = markdown([read]).splitlines()[-1]
    assert line.startswith(f"| {tiny_folder.name} | loogle_shortdep_choice | 1 | 5 | 0 | 5 | acc ")


def test_a_folder_that_is_missing_is_told_in_a_line(
    recipe: ModuleType,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--data", tmp_path / "none", "--rows", tmp_path / "rows.jsonl", "--model", tiny_folder]
    monkeypatch.setattr(sys, "argv", ["harness_equality.py", *map(str, options)])
    with pytest.raises(SystemExit, match="2"):
        recipe.main()
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err.splitlines()[-1]
