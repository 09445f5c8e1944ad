"""MiniLongBench's prompts, taken apart into LongBench's fields and put together again by lm-eval."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.local_tasks import LONGBENCH_E, tasks_of

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

RECIPE = Path(__file__).parents[2] / "recipes" / "mini_longbench.py"
CONTEXT = (
    "Passage 1:\nAda keeps a lamp.\n\nQuestion: Who?\nAnswer: Ada\n\nDialogue: Ada: Hm.\n\nPassage:\nThe harbour.\n"
)
QUESTIONS = {
    "qasper": "Who keeps it?",
    "multifieldqa_en": "Who keeps it?",
    "hotpotqa": "Who keeps it?",
    "2wikimqa": "Who keeps it?",
    "trec": "Question: Who keeps it ?\nType:",
    "triviaqa": "Passage:\nAda has it.\nQuestion:\nWho keeps it?\nAnswer:\n",
    "samsum": "Dialogue: Ada: Mine.\r\nBea: No.\nSummary: ",
    "passage_retrieval_en": "Someone keeps something.",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one prompt a task: the one that lm-eval makes of our own words."""
    rows, data = {}, tmp_path / "own"
    (data / "longbench").mkdir(parents=True)
    for task, answer in LONGBENCH_E.items():
        classes = ["Colour", "Place"] if task == "trec" else None
        rows[task] = {"input": QUESTIONS.get(task, ""), "context": CONTEXT, "answers": [answer], "all_classes": classes}
        (data / "longbench" / f"{task}.jsonl").write_text(json.dumps(rows[task]) + "\n")
    folder = tmp_path / "repository" / "pred_data" / "example"
    folder.mkdir(parents=True)
    tasks = tasks_of(*(f"longbench_{name}" for name in rows), data=data)
    for name, row in rows.items():
        (doc,) = tasks[f"longbench_{name}"].test_docs()
        asking = tasks["longbench_hotpotqa" if name == "qasper" else f"longbench_{name}"]  # where the two differ
        gold = {key: row[key] for key in ("answers", "all_classes")} if name == "trec" else row["answers"]
        sample = {"0": {"origin_prompt": asking.doc_to_text(doc), "gold": gold}}
        (folder / f"MiniLongBench_{name}.json").write_text(json.dumps(sample))
    return tmp_path / "repository"


def test_every_task_is_asked_about_the_same_document(repository: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, RECIPE, repository, tmp_path / "data"], check=True)
    tasks = tasks_of(*(f"longbench_{name}" for name in LONGBENCH_E), data=tmp_path / "data")
    for name, answer in LONGBENCH_E.items():
        task = tasks[f"longbench_{name}"]
        (doc,) = task.test_docs()
        assert doc["question"] == QUESTIONS.get(name, "")
        assert doc["context"].strip() == CONTEXT.strip()
        assert task.process_results(doc, [answer])["score"] == pytest.approx(1, abs=1e-6)


def test_a_prompt_of_another_kind_is_named(recipe: Callable[[str], ModuleType]) -> None:
    given: dict[str, Any] = {"4": {"origin_prompt": "Who?", "gold": ["Ada"]}}
    with pytest.raises(ValueError, match="hotpotqa, sample 4: not the prompt"):
        recipe("mini_longbench").samples("hotpotqa", given)
