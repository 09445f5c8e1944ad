"""The recipes of docs/accuracy.md: which policies were measured, and on which prompts."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BatchEncoding

from deltahalt import parse_policy
from deltahalt.lab.evaluation.samples import read_samples

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("form", "layers", "starts", "file"),
    [
        ("resembling", 28, [3, 4, 6], "heldout-qwen2.5-coder-1.5b"),
        ("further", 28, [3], "variants-qwen2.5-coder-1.5b"),
        ("resembling", 24, [3, 2, 5], "heldout-qwen2.5-coder-0.5b"),
        ("further", 24, [3], "variants-qwen2.5-coder-0.5b"),
        ("finding", 28, [2], "finding-qwen2.5-coder-1.5b"),
        ("finding", 24, [2], "finding-development-qwen2.5-coder-0.5b"),
        ("finding", 30, [3], "finding-smollm2-135m"),
        ("finding", 18, [1], "finding-gemma3-270m"),
        ("exits", 28, [2], "exits-qwen2.5-coder-1.5b"),
        ("exits", 24, [2], "exits-qwen2.5-coder-0.5b"),
        ("exits", 30, [3], "exits-smollm2-135m"),
        ("blind", 28, [4], "query-free-qwen2.5-coder-1.5b"),
        ("blind", 24, [3], "query-free-qwen2.5-coder-0.5b"),
        ("blind", 30, [4], "query-free-smollm2-135m"),
    ],
)
def test_what_was_measured_is_what_the_recipe_says(
    form: str, layers: int, starts: list[int], file: str, recipe: Callable[[str], ModuleType]
) -> None:
    printed = {policy for policy in recipe("accuracy_policies").BY_LAYERS[form](layers, starts) if policy}
    lines = (ROOT / "results" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    measured = {
        parse_policy(policy)
        for policy in (json.loads(line)["policy"] for line in lines)
        if "max-sim" in policy or "forecast" in policy
    }
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


def test_passages_are_whole_sentences_from_within_long_texts(
    tmp_path: Path, recipe: Callable[[str], ModuleType]
) -> None:
    module = recipe("asked_passages")
    every = list(module.passages(_benchmarks(tmp_path)))
    assert every == list(module.passages(tmp_path))
    assert {one.kind for one in every} == {"essays", "loogle"}  # the news are too short
    for one in every:
        words = one.text[one.begin : one.end]
        assert one.text[one.begin - 2 : one.begin] == ". "
        assert words.endswith(".")
        assert 700 <= len(words) <= 1500
        assert one.begin > 1500 - 100


def test_a_passage_is_asked_for_where_the_model_keeps_to_the_form(recipe: Callable[[str], ModuleType]) -> None:
    module = recipe("asked_passages")
    said = ["Question: Who was it?\n\nAnswer: the mayor\nof a town", "I do not know."]
    prompts: list[str] = []

    class Tokenizer:
        def apply_chat_template(self, turns: Any, **_: Any) -> list[str]:
            prompts.extend(turn[0]["content"] for turn in turns)
            return prompts

        def __call__(self, texts: list[str], **_: Any) -> Any:
            return BatchEncoding({"input_ids": torch.zeros(len(texts), 3, dtype=torch.long)})

        def batch_decode(self, ids: torch.Tensor, **_: Any) -> list[str]:
            assert ids.tolist() == [[7, 7], [7, 7]]
            return said

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.full((len(input_ids), 2), 7)], dim=1)

    loaded = SimpleNamespace(model=SimpleNamespace(generate=generate, device="cpu"), tokenizer=Tokenizer())
    text = "It rained. The mayor of the town opened it. It snowed."
    passage = module.Passage("news", text, 11, 43)
    assert list(module.asked(loaded, [passage, passage])) == [
        {"task": "asked_news", "prompt": text, "question": "Question: Who was it?\nAnswer:", "answer": "the mayor"}
    ]
    assert "\n\nThe mayor of the town opened it.\n\n" in prompts[0]
