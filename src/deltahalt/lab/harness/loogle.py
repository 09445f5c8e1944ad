"""Questions and automatic metrics of LooGLE (Li et al. 2024, arXiv 2311.04939).

The task files are tasks/loogle/*.yaml, with LooGLE's own prompts and answer lengths.
"""

import ast
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from rouge import Rouge

from deltahalt.errors import InputError
from deltahalt.lab.harness.local import read_local


def questions(file: str, data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Return the test split of a LooGLE file in the folder `data`: a row for each question, with its whole document.

    lm-eval calls this function with the task's settings and metadata. Raises InputError without `data`, or for a file
    that is not in LooGLE's format.
    """
    if data is None:
        raise InputError("LooGLE is read from local files: give --data FOLDER (lm_eval: --metadata data=FOLDER)")
    path = Path(data, "loogle", f"{file}.jsonl")
    rows = read_local(path, input=str, qa_pairs=(str, list), output=str)
    parts = [part for number, row in enumerate(rows, 1) for part in _split(row, path, number)]
    return {"test": Dataset.from_list(parts)}


def score_text(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return the ROUGE-L F1 of one answer, and the recall that LooGLE's script prints, by the package it uses."""
    try:
        scores = Rouge(metrics=["rouge-l"]).get_scores(answered(results), doc["answer"])[0]["rouge-l"]
    except ValueError:  # nothing but full stops
        return {"rouge_l": 0.0, "rouge_l_recall": 0.0}
    return {"rouge_l": scores["f"], "rouge_l_recall": scores["r"]}


def score_cloze(doc: dict[str, Any], results: list[str]) -> dict[str, tuple[int, int]]:
    """Return the number of right masks and of all masks in one answer, which is a Python dict of entities by mask.

    exact_match counts equal entities, partial_match those with a word in common.
    """
    wanted = json.loads(doc["answer"])
    given = _read_masks(results[0])
    named = {mask: (str(given[mask]), str(entity)) for mask, entity in wanted.items() if mask in given}
    exact = sum(said == entity for said, entity in named.values())
    partial = sum(bool(set(said.split()) & set(entity.split())) for said, entity in named.values())
    return {"exact_match": (exact, len(wanted)), "partial_match": (partial, len(wanted))}


def share(counts: list[tuple[int, int]]) -> float:
    """Return the share of right masks among all masks of all questions."""
    right, masks = map(sum, zip(*counts, strict=True))
    return right / masks


def answered(results: list[str]) -> str:
    """Return the model's answer. LooGLE scores an empty one as the word None."""
    return results[0].strip() or "None"


def _split(row: dict[str, Any], path: Path, number: int) -> list[dict[str, str]]:
    pairs = row["qa_pairs"]
    if pairs == "none":
        return [{"input": row["input"], "question": "", "answer": row["output"]}]
    try:
        pairs = ast.literal_eval(pairs) if isinstance(pairs, str) else pairs
        return [{"input": row["input"], "question": pair["Q"], "answer": _as_text(pair["A"])} for pair in pairs]
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}, line {number}: qa_pairs is not a list of objects with Q and A: put LooGLE's own file there"
        ) from error


def _as_text(answer: Any) -> str:
    return json.dumps(answer) if isinstance(answer, dict) else str(answer)


def _read_masks(answer: str) -> dict[Any, Any]:
    try:
        masks = ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # models may answer anything
        return {}
    return masks if isinstance(masks, dict) else {}
