"""Read benchmarks from a local folder, each in the layout in which it is published.

| file in the folder | fields |
|---|---|
| `longbench/<task>.jsonl`, such as `hotpotqa_e.jsonl` | LongBench: `input`, `context`, `answers`, `all_classes` |
| `ruler/<task>_<tokens>.jsonl`, such as `niah_single_1_4096.jsonl` | RULER: `input`, `outputs`, maybe `answer_prefix` |
| `loogle/<task>.jsonl`, such as `shortdep_qa.jsonl` | LooGLE: `input`, `qa_pairs`, `output` |
| `essays/*.txt` | the haystack of the needle task |
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from deltahalt.errors import InputError
from deltahalt.lab.jsonl import Kinds, read_jsonl

# RULER's own names of tasks, by lm-eval's names, where they differ.
RULER_NAMES = {
    "ruler_vt": "vt",
    "ruler_cwe": "cwe",
    "ruler_fwe": "fwe",
    "ruler_qa_squad": "qa_1",
    "ruler_qa_hotpot": "qa_2",
}


def longbench_rows(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return the rows of lm-eval's task `longbench_<name>`, with `input` also as `question`. Raises as `read_local`."""
    rows = read_local(
        folder / "longbench" / f"{task.removeprefix('longbench_')}.jsonl", input=str, context=str, answers=list
    )
    return [{"all_classes": None} | row | {"question": row["input"]} for row in rows]


def ruler_rows(folder: Path, task: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of lm-eval's RULER task `task`, with prompts of all `lengths` in turn. Raises as `read_local`."""
    name = RULER_NAMES.get(task, task)
    return in_turn(
        [
            {
                "input": row["input"],
                "outputs": [str(output) for output in row["outputs"]],
                "gen_prefix": str(row.get("answer_prefix", "")).strip(),
                "max_length": length,
            }
            for row in read_local(folder / "ruler" / f"{name}_{length}.jsonl", input=str, outputs=list)
        ]
        for length in lengths
    )


def in_turn(rows: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the first row of each list, then the second of each, and so on, so that a --limit keeps rows of all."""
    return [row for together in zip_longest(*rows) for row in together if row is not None]


def read_local(path: Path, **fields: Kinds) -> list[dict[str, Any]]:
    """Return the objects of a benchmark's JSONL file. fields: the fields that each object must have, and their types.

    Raises InputError for a file that is missing or empty, and for a line that is not such an object.
    """
    hint = "put the benchmark's own file there, or give another --data folder"
    rows = [row for _, row in read_jsonl(path, hint=hint, fields=fields)]
    if not rows:
        raise InputError(f"{path} is empty: {hint}")
    return rows
