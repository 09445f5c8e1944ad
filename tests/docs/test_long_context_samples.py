"""The recipe that makes the samples of docs/accuracy.md from public benchmark files."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from deltahalt.lab.evaluation.samples import read_samples

ROOT = Path(__file__).parents[2]


def _benchmarks(folder: Path) -> Path:
    """A few long documents in the layouts of the public files that samples are made of."""
    text = " ".join(f"In year {number} the mayor of town {number} opened a bridge." for number in range(2000))
    pairs = [
        {"Q": f"Who opened bridge {n}?", "A": "the mayor", "S": f"In year {n} the mayor of town {n}"} for n in (5, 1200)
    ]
    key_values = {"key": "a", "ordered_kv_records": [["a", "1"], ["b", "2"]]}
    files: dict[str, list[Any]] = {
        "longbench/multi_news": [{"context": text[n : n + 7000], "answers": [f"Bridge {n}."]} for n in range(80)],
        "ruler/niah_multikey_3_4096": [{"input": "Keys.\nWhat is it? It is", "outputs": ["7"]}],
        "loogle/shortdep_qa": [{"input": text, "qa_pairs": str(pairs)}],
        "loogle/longdep_qa": [{"input": text[:50_000], "qa_pairs": str(pairs[:1])}],
        "loogle/longdep_summarization": [{"input": text, "output": "On bridges."}],
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "essays").mkdir()
    (folder / "essays" / "one.txt").write_text(text[:40_000], encoding="utf-8")
    (folder / "kv-retrieval").mkdir()
    with gzip.open(folder / "kv-retrieval" / "kv-retrieval-75_keys.jsonl.gz", "wt") as file:
        file.write(json.dumps(key_values))
    return folder


def test_samples_are_the_same_for_the_same_files(tmp_path: Path) -> None:
    folder, out = _benchmarks(tmp_path / "public"), tmp_path / "samples.jsonl"
    drawn = []
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "recipes" / "long_context_samples.py", folder, out], check=True)
        drawn.append(read_samples(out))
    assert drawn[0] == drawn[1]
    assert {sample.task for sample in drawn[0]} > {"needle", "multi_news", "loogle_short_qa", "loogle_summ"}
