"""Tiny benchmarks in local files, in the layouts of LongBench-E, RULER and LooGLE, and the tasks that read them."""

import json
from pathlib import Path
from typing import Any

# LongBench-E's tasks (DASH, Table 1), each with a right answer in its own form.
LONGBENCH_E = {
    "qasper": "a lamp",
    "multifieldqa_en": "a lamp",
    "hotpotqa": "a lamp",
    "2wikimqa": "a lamp",
    "gov_report": "The harbour was dredged. The lamp was lit.",
    "multi_news": "The harbour was dredged. The lamp was lit.",
    "trec": "Colour",
    "triviaqa": "a lamp",
    "samsum": "Ada brings the lamp.",
    "passage_count": "7",
    "passage_retrieval_en": "Paragraph 3",
    "lcc": "    return lamp.light()",
    "repobench-p": "    return lamp.light()",
}
DOCUMENT = "Ada keeps a lamp in the harbour. " * 8
MASKS = {"<mask-0>": "Ada Byron", "<mask-1>": "Cork"}


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_benchmarks(folder: Path) -> None:
    """Tiny files of our own words in the layouts of LongBench-E, RULER and LooGLE, and two essays."""
    for task, answer in LONGBENCH_E.items():
        row = {
            "input": f"What does Ada keep, for {task}?",
            "context": DOCUMENT,
            "answers": [answer],
            "length": 56,
            "dataset": task,
            "language": "en",
            "all_classes": ["Colour", "Place"] if task == "trec" else None,
        }
        rows = [row | {"_id": f"{number}", "context": f"{number}. {DOCUMENT * number}"} for number in (1, 2, 3)]
        write(folder / "longbench" / f"{task}_e.jsonl", *rows)
    for length in (128, 256):
        rows = [{"index": n, "input": f"{DOCUMENT}Which {n}?", "outputs": ["lamp", "Cork"]} for n in (0, 1)]
        write(folder / "ruler" / f"niah_multikey_3_{length}.jsonl", *rows)
    write(folder / "ruler" / "qa_1_128.jsonl", {"input": "Where?", "outputs": ["Cork"], "answer_prefix": " It is"})
    letters = [{"input": f"{DOCUMENT} {letter}?", "outputs": [letter, "e"]} for letter in "abcdf"]
    write(folder / "ruler" / "niah_single_1_256.jsonl", *letters)
    pairs = [{"Q": "Where is it?", "A": "in the harbour", "S": []}, {"Q": "What\u2028is it?", "A": 3, "type": "sum"}]
    for task, own in {
        "shortdep_qa": {"qa_pairs": repr(pairs), "output": "none"},
        "longdep_qa": {"qa_pairs": repr(pairs), "output": "None"},
        "shortdep_cloze": {"qa_pairs": repr([{"Q": "<mask-0> of <mask-1>", "A": MASKS}]), "output": "None"},
        "longdep_summarization": {"qa_pairs": "none", "question": "none", "output": "Ada lights the harbour."},
    }.items():
        write(folder / "loogle" / f"{task}.jsonl", {"input": DOCUMENT, "title": "Lamps"} | own)
    for name in ("one", "two"):
        essay = folder / "essays" / f"{name}.txt"
        essay.parent.mkdir(exist_ok=True)
        essay.write_text(f"This is essay {name}. " + "The tide goes out. The tide comes in. " * 5)


def tasks_of(*names: str, **options: Any) -> dict[str, Any]:
    from deltahalt.lab.harness.lookup import find_tasks  # it needs lm-eval, and conftest imports this module

    return {task.task_name: task for task in find_tasks(names, **options)}
