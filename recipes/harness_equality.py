"""Hold lm-eval's own model `hf` against `deltahalt` with nothing halted: equal in every response and every score?

usage: harness_equality.py --data FOLDER --rows FILE [--model MODEL] [--limit N] [--max-length N] [--answer N]

Both run the same samples of TASKS and of a choice between answers, at batch sizes 1 and 4, on a CPU in float32; a
sample counts as equal if all that lm-eval logs of it is. FOLDER is as for `deltahalt eval --data`. --limit: samples of
a task. --max-length, --answer: most tokens of prompt and answer together, and of an answer; longer prompts lose their
beginning. Exits with 1 where anything differs.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval import evaluate
from lm_eval.api.registry import get_model
from lm_eval.api.task import ConfigurableTask, Task

import deltahalt.integrations.lm_eval  # noqa: F401 (registers the model)
from deltahalt.errors import InputError
from deltahalt.lab.bench.machine import machine_name
from deltahalt.lab.harness.equality import EqualityRow, markdown
from deltahalt.lab.harness.loogle import questions
from deltahalt.lab.harness.lookup import find_tasks
from deltahalt.lab.rows.base import append_rows
from deltahalt.loading.models import load

TASKS = ["longbench_multi_news", "loogle_shortdep_qa", "niah_multikey_3", "needle"]  # all generate
RULER_LENGTH = 4096  # of RULER's file
BATCHES = [1, 4]
MODELS = ["hf", "deltahalt"]


def find(data: Path, tokenizer: Any, length: int) -> list[Task]:
    """TASKS, and one scored by log-likelihoods. Needle prompts are of two lengths, the longer `length` tokens."""
    *files, needle = TASKS
    found = find_tasks(files, data=data, lengths=[RULER_LENGTH], bertscore="none")
    lengths = [length // 2, length]
    return [*found, *find_tasks([needle], data=data, lengths=lengths, tokenizer=tokenizer), choice(data)]


def choice(data: Path) -> Task:
    """LooGLE's short questions, each with two answers: its own, and that to the next question."""

    def rows(**_: Any) -> dict[str, Dataset]:
        asked = list(questions("shortdep_qa", str(data))["test"])
        later = [*asked[1:], asked[0]]
        return {
            "test": Dataset.from_list(
                [one | {"choices": [one["answer"], other["answer"]]} for one, other in zip(asked, later, strict=True)]
            )
        }

    return ConfigurableTask(
        config={
            "task": "loogle_shortdep_choice",
            "custom_dataset": rows,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{input}}\n\nQuestion: {{question}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": 0,
            "metadata": {"version": 1.0},
        }
    )


def compare(model: str, tasks: Sequence[Any], limit: int, max_length: int, answer: int) -> Iterator[EqualityRow]:
    """A row for each of `tasks` and batch size. model: a bundled name, hub id, local folder or .gguf file.

    limit: of a task's samples. max_length, answer: as in `EqualityRow`.
    """
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": answer}, update=True)
    loaded = load(model, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        for batch in BATCHES:
            settings = {"device": "cpu", "dtype": "float32", "batch_size": batch, "max_length": max_length}
            lms = [get_model(name)(pretrained=folder, **settings) for name in MODELS]
            for task in tasks:
                own, ours = (evaluate(lm, {"tasks": {task.task_name: task}}, limit=limit) for lm in lms)
                logged, again = own["samples"][task.task_name], ours["samples"][task.task_name]
                yield EqualityRow(
                    task=task.task_name,
                    batch_size=batch,
                    samples=len(logged),
                    equal=sum(one == other for one, other in zip(logged, again, strict=True)),
                    responses=len({str(sample["resps"]) for sample in logged}),
                    hf=scores(own, task.task_name),
                    deltahalt=scores(ours, task.task_name),
                    model=loaded.name,
                    max_length=max_length,
                    answer=answer,
                    dtype="float32",
                    machine=machine_name(lms[0].device),
                    version=str(own["versions"][task.task_name]),
                    versions={name: version(name) for name in ("deltahalt", "lm_eval", "transformers", "torch")},
                )


def scores(results: Mapping[str, Any], task: str) -> dict[str, float]:
    """lm-eval's scores of a task by metric, those that have a value."""
    values = {key.partition(",")[0]: value for key, value in results["results"][task].items() if ",none" in key}
    return {metric: value for metric, value in values.items() if not metric.endswith("_stderr")}


def main() -> None:
    """Compare, and print and keep the rows."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--answer", type=int, default=16)
    given = parser.parse_args()
    tokenizer = load(given.model, device="cpu").tokenizer
    try:
        tasks = find(given.data, tokenizer, given.max_length - given.answer)
    except InputError as error:
        parser.error(str(error))
    rows = list(compare(given.model, tasks, given.limit, given.max_length, given.answer))
    append_rows(given.rows, rows)
    print(markdown(rows))  # noqa: T201
    if any(row.equal < row.samples or row.hf != row.deltahalt for row in rows):
        sys.exit("responses or scores differ")


if __name__ == "__main__":
    main()
