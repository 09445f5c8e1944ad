"""A row of `recipes/harness_equality.py`: lm-eval's own model `hf` beside `deltahalt` with nothing halted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from deltahalt.lab.rows.base import Row
from deltahalt.lab.rows.markdown import table


@dataclass(frozen=True)
class EqualityRow(Row):
    """Both models on the same samples of a task, in batches of `batch_size`.

    equal: of `samples`, those of which lm-eval logged the same with both: prompt, responses (text, or log-likelihoods
    to the last bit) and metrics. responses: how many different ones `hf` gave; if few, that they agree says little.
    hf, deltahalt: the task's scores by metric. max_length, answer: most tokens of prompt and answer together, and of
    an answer. version: the task's own.
    """

    kind: ClassVar[str] = "equality"
    signed: ClassVar[frozenset[str]] = frozenset({"hf", "deltahalt"})

    task: str
    batch_size: int
    samples: int
    equal: int
    responses: int
    hf: Mapping[str, float]
    deltahalt: Mapping[str, float]
    model: str
    max_length: int
    answer: int
    dtype: str
    machine: str
    version: str
    versions: Mapping[str, str]


def markdown(rows: Sequence[EqualityRow]) -> str:
    """The rows as a Markdown table, a line a task and batch size."""
    return table(
        {
            "model": [row.model for row in rows],
            "task": [row.task for row in rows],
            "batch": [f"{row.batch_size}" for row in rows],
            "samples": [f"{row.samples}" for row in rows],
            "equal": [f"{row.equal}" for row in rows],
            "different responses": [f"{row.responses}" for row in rows],
            "`hf`": [_scores(row.hf) for row in rows],
            "`deltahalt`": [_scores(row.deltahalt) for row in rows],
        }
    )


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{metric} {score:.4f}" for metric, score in scores.items())
