"""The recipes of docs/accuracy.md: which policies were measured, and on which prompts."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deltahalt.evaluation.samples import read_samples

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("form", "layers", "starts", "file"),
    [
        ("resembling", 28, [3, 4, 6], "heldout-qwen2.5-coder-1.5b"),
        ("further", 28, [3], "variants-qwen2.5-coder-1.5b"),
        ("resembling", 24, [3, 2, 5], "heldout-qwen2.5-coder-0.5b"),
        ("further", 24, [3], "variants-qwen2.5-coder-0.5b"),
    ],
)
def test_late_interaction_was_measured_as_the_recipe_says(
    form: str, layers: int, starts: list[int], file: str, recipe: Callable[[str], ModuleType]
) -> None:
    printed = {policy for policy in recipe("accuracy_policies").BY_LAYERS[form](layers, starts) if policy}
    lines = (ROOT / "results" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    measured = {policy for policy in (json.loads(line)["policy"] for line in lines) if "max-sim" in policy}
    assert measured
    assert measured <= printed


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
        "loogle/shortdep_cloze": [{"input": text}],
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


def test_what_is_tried_on_is_apart_from_what_is_reported(tmp_path: Path) -> None:
    folder, out = _benchmarks(tmp_path / "public"), tmp_path / "samples.jsonl"
    asked = {}
    for name in ("long_context_samples", "development_samples"):
        subprocess.run([sys.executable, ROOT / "recipes" / f"{name}.py", folder, out], check=True)
        asked[name] = [(sample.task, sample.prompt, sample.question) for sample in read_samples(out)]
    reported, tried = (list(samples) for samples in asked.values())
    assert {task for task, *_ in reported} > {"needle", "multi_news", "loogle_short_qa", "loogle_summ"}
    assert {task for task, *_ in tried} == {"multi_news", "own_news", "loogle_short_qa", "abstract", "own_summary"}
    assert not {sample[1:] for sample in reported} & {sample[1:] for sample in tried}
    assert len({sample[1:] for sample in tried}) == len(tried)
