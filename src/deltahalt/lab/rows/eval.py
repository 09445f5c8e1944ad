"""A row of `deltahalt eval`: one metric of one task, and what the task's generation took."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, ClassVar

import torch

from deltahalt.engine.report import Report
from deltahalt.lab.rows.base import Row


@dataclass
class Spent:
    """What generation took so far, of all samples together; zero where a task only scores given continuations.

    prefill_seconds, generation_seconds: until the first token of each answer, and after it. prompt_tokens: as prompts
    came, before a method shortened them, without padding. new_tokens: with padding, for answers that end before others
    of their batch. peak_bytes: most GPU memory held, weights included; None on a CPU.
    """

    prefill_seconds: float = 0.0
    generation_seconds: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    peak_bytes: int | None = None

    @classmethod
    def from_now(cls, device: torch.device) -> "Spent":
        """Nothing yet; the device's memory is watched from now on."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return cls()

    def add(self, prefill: Report, tokens: torch.Tensor, seconds: float) -> None:
        """Add a batch: the report of its prefill, prompts and answers [B, T + n], and the seconds of both."""
        assert prefill.seconds is not None
        self.prefill_seconds += prefill.seconds
        self.generation_seconds += seconds - prefill.seconds
        self.new_tokens += len(tokens) * (tokens.shape[1] - max(prefill.prompts))
        if tokens.is_cuda:
            self.peak_bytes = torch.cuda.max_memory_allocated(tokens.device)


@dataclass(frozen=True)
class EvalRow(Row):
    """One metric of one task.

    stderr: of the mean over samples; None where lm-eval has none. samples: how many were scored. seconds: the whole
    task's, generation and scoring. version: the task's own. seed: of random, numpy, torch and few-shot drawing. From
    prefill_seconds to peak_bytes: those of `Spent`, in this process. encoder: BERTScore's and its layer, no folders;
    empty for other metrics. attention: the implementation, as transformers names it. cut: prompts of this process that
    were longer than the model takes, and lost their beginning. by_sample: the metric of each sample, in the order of
    the data; empty where the metric is no mean of theirs. The last four are empty, or None, in rows from before they
    were kept.
    """

    kind: ClassVar[str] = "eval"
    signed: ClassVar[frozenset[str]] = frozenset({"value", "by_sample", "seed"})

    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int
    seconds: float
    model: str
    policy: str
    halted_kv: str
    min_prompt_tokens: int
    chat_template: bool
    batch_size: int | str
    max_length: int
    dtype: str
    device: str
    machine: str
    processes: int
    seed: int
    version: str
    deltahalt: str
    lm_eval: str
    transformers: str
    torch: str
    prefill_seconds: float
    generation_seconds: float
    prompt_tokens: int
    new_tokens: int
    peak_bytes: int | None
    encoder: str = ""
    attention: str = ""
    cut: int | None = None
    by_sample: tuple[float, ...] = ()

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "EvalRow":
        return cls(**fields | {"by_sample": tuple(fields.get("by_sample", ()))})


def paired(row: EvalRow, full: EvalRow) -> tuple[float, float] | None:
    """Mean difference to the full model over the samples, and its standard error; None where they were not kept."""
    if len(row.by_sample) != len(full.by_sample) or len(row.by_sample) < 2:
        return None
    apart = [own - other for own, other in zip(row.by_sample, full.by_sample, strict=True)]
    return fmean(apart), stdev(apart) / math.sqrt(len(apart))
