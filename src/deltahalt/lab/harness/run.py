"""Run tasks through lm-eval, and return their results as rows."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from operator import itemgetter
from statistics import fmean
from typing import Any

from lm_eval import evaluate
from lm_eval.api.task import Task
from transformers import set_seed

from deltahalt.errors import InputError
from deltahalt.integrations.lm_eval import DeltahaltLM
from deltahalt.lab.bench.machine import ran_on
from deltahalt.lab.harness.bertscore import BERTSCORE
from deltahalt.lab.rows.eval import EvalRow, Spent


def run_tasks(
    lm: DeltahaltLM, tasks: Sequence[Task], *, limit: int | None = None, chat_template: bool = False, seed: int = 0
) -> Iterator[EvalRow]:
    """Evaluate one task after the other, and yield its rows, in the first process only.

    Args:
        lm: The model.
        tasks: The tasks, as `find_tasks` returns them.
        limit: Number of first samples to run of each task; None for all.
        chat_template: Whether prompts are put into the model's chat format.
        seed: Seed of random, numpy, torch and few-shot drawing.

    Raises:
        InputError: If a task's answers leave no room for a prompt, or if the model has no chat format to use.
        UnsupportedError: For a task that scores prompt tokens, which have no logits once halted.

    Raises what halting and the tasks raise as well.
    """
    if chat_template and not lm.tokenizer.chat_template:
        raise InputError(f"{lm.name} has no chat template: leave --apply-chat-template out")
    for task in tasks:
        _require_room(lm, task)
        lm.require_prompts(task.task_name, task.OUTPUT_TYPE)
    for task in tasks:
        lm.spent, lm.cut, begin = Spent.from_now(lm.device), set(), time.perf_counter()
        results = _evaluate(lm, task, limit=limit, chat_template=chat_template, seed=seed)
        if results is not None:
            yield from _rows(lm, results, time.perf_counter() - begin, chat_template=chat_template, seed=seed)


def _require_room(lm: DeltahaltLM, task: Any) -> None:
    answer = (task.config.generation_kwargs or {}).get("max_gen_toks", 0)
    if answer >= lm.max_length:
        raise InputError(
            f"{task.task_name} allows answers of {answer} tokens, and {lm.max_length} are allowed with the prompt: "
            "give a larger --max-length, or a model with a longer context"
        )


def _evaluate(lm: DeltahaltLM, task: Any, *, limit: int | None, chat_template: bool, seed: int) -> Any:
    """Return lm-eval's results for one task, without the machine report of `simple_evaluate`, which takes seconds."""
    set_seed(seed)
    task.set_fewshot_seed(seed)
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    tasks = {"tasks": {task.task_name: task}}
    return evaluate(lm, tasks, limit=limit, apply_chat_template=chat_template, log_samples=True)


def _rows(lm: DeltahaltLM, results: Any, seconds: float, *, chat_template: bool, seed: int) -> Iterator[EvalRow]:
    for task, values in results["results"].items():
        metrics = {key: value for key, value in values.items() if "," in key and "_stderr," not in key}
        for key, value in metrics.items():
            name, _, kept = key.partition(",")
            if name.isdecimal() and value == -1:  # a RULER metric for a prompt length without samples
                continue
            stderr = values.get(f"{name}_stderr,{kept}")
            yield EvalRow(
                task=task,
                metric=name if kept == "none" else key,
                value=float(value),
                stderr=stderr if isinstance(stderr, float) else None,
                samples=results["n-samples"][task]["effective"],
                seconds=seconds,
                model=lm.name,
                policy=lm.policy_text,
                halted_kv="drop",
                min_prompt_tokens=lm.settings["min_prompt_tokens"],
                chat_template=chat_template,
                batch_size=lm.batch_size,
                max_length=lm.max_length,
                device=str(lm.device),
                processes=lm.world_size,
                seed=seed,
                version=str(results["versions"][task]),
                **asdict(lm.spent),
                cut=len(lm.cut),
                by_sample=_by_sample(results["samples"][task], name, kept, float(value)),
                encoder=results["configs"][task]["metadata"].get(BERTSCORE, "") if name == BERTSCORE else "",
                lm_eval=version("lm_eval"),
                **ran_on(lm.model),
            )


def _by_sample(samples: Sequence[dict[str, Any]], metric: str, kept: str, mean: float) -> tuple[float, ...]:
    """Return each sample's value of the metric after the filter `kept`; none if `mean` is not their mean."""
    own = [sample for sample in samples if sample["filter"] == kept and isinstance(sample.get(metric), (int, float))]
    if metric.isdecimal():  # RULER scores -1 for prompts of another length
        own = [sample for sample in own if sample[metric] != -1]
    values = tuple(float(sample[metric]) for sample in sorted(own, key=itemgetter("doc_id")))
    return values if values and math.isclose(fmean(values), mean, abs_tol=1e-9) else ()
