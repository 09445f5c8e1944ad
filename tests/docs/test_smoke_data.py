"""The samples of `make eval-smoke`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deltahalt.loading.models import LoadedModel

ROOT = Path(__file__).parents[2]


def test_smoke_samples_ask_for_what_is_in_them(tmp_path: Path, loaded_tiny: LoadedModel) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")
    from deltahalt.lab.harness.lookup import find_tasks

    for folder in ("one", "two"):
        subprocess.run([sys.executable, "-m", "tools.smoke_data", tmp_path / folder], cwd=ROOT, check=True)
    files = [path for path in sorted(tmp_path.glob("one/*/*")) if path.is_file()]
    assert len(files) == 3
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    names = ["longbench_multifieldqa_en_e", "niah_single_2", "needle"]
    tasks = find_tasks(names, data=tmp_path / "one", lengths=(1536,), tokenizer=loaded_tiny.tokenizer)
    for task in tasks:
        docs = list(task.test_docs())  # type: ignore[no-untyped-call]
        assert len(docs) >= 3
        for doc in docs:
            (answer,) = doc.get("answers") or doc["outputs"]
            assert str(task.doc_to_text(doc)).count(answer) == 1
    smoke = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("SMOKE :="))
    assert ",".join(names) in smoke
    lines = (tmp_path / "one" / "longbench" / "multifieldqa_en_e.jsonl").read_text().splitlines()
    assert len({json.loads(line)["context"] for line in lines}) == 3
