"""A row of `deltahalt eval`: one metric of one task, and the cost of the task's generation."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, ClassVar

import torch

from deltahalt.engine.report import Report
from deltahalt.lab.rows.base import Row


@dataclass
class Spent:
    """The cost of generation so far, summed over samples; zero for tasks that only score given continuations.

    prefill_seconds, generation_seconds: time until the first token of each answer, and after it.
    prompt_tokens: number of tokens of the prompts before any method shortens them, without padding.
    new_tokens: number of generated tokens, with padding after answers that end before others of their batch.
    peak_bytes: peak of the allocated GPU memory, weights included; None on a CPU.
    """

    prefill_seconds: float = 0.0
    generation_seconds: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    peak_bytes: int | None = None

    @classmethod
    def from_now(cls, device: torch.device) -> "Spent":
        """Return zero cost, and restart the measurement of the device's peak memory."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return cls()

    def add(self, prefill: Report, tokens: torch.Tensor, seconds: float) -> None:
        """Add a batch: its prefill's report, its prompts and answers [B, T + n], and the seconds of both together."""
        assert prefill.seconds is not None
        self.prefill_seconds += prefill.seconds
        self.generation_seconds += seconds - prefill.seconds
        self.new_tokens += len(tokens) * (tokens.shape[1] - max(prefill.prompts))
        if tokens.is_cuda:
            self.peak_bytes = torch.cuda.max_memory_allocated(tokens.device)


@dataclass(frozen=True)
class EvalRow(Row):
    """One metric of one task.

    stderr: standard error of the mean over samples; None if lm-eval reports none.
    samples: number of scored samples.
    seconds: time of the whole task, generation and scoring.
    seed: the seed of random, numpy, torch and few-shot drawing.
    version: the version of the task.
    prefill_seconds to peak_bytes: as in `Spent`, for this process.
    encoder: name and layer of BERTScore's encoder, without folders; empty for other metrics.
    attention: transformers' name of the attention implementation.
    cut: number of this process's prompts that were longer than the model's context and lost their beginning.
    by_sample: the metric of each sample, in the order of the data; empty if the metric is not their mean.

    The last four are empty or None in older rows, which do not store them.
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
    """Return the mean difference to the full model over the samples, and its standard error; None without samples."""
    if len(row.by_sample) != len(full.by_sample) or len(row.by_sample) < 2:
        return None
    apart = [own - other for own, other in zip(row.by_sample, full.by_sample, strict=True)]
    return fmean(apart), stdev(apart) / math.sqrt(len(apart))
