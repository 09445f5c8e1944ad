"""Run tasks through lm-eval, and keep what they gave as rows."""

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
    """Evaluate one task after the other; yields its rows, in the first process only.

    limit: the first samples of each task only. Raises InputError where answers would leave no room for a prompt, and
    for a chat format that there is none of; UnsupportedError for a task that no halted prompt can be scored by; and
    what halting and the tasks raise.
    """
    if chat_template and not lm.tokenizer.chat_template:
        raise InputError(f"{lm.name} has no chat format: leave --apply-chat-template out")
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
            f"{task.task_name} allows answers of {answer} tokens, and {lm.max_length} are all the room there is: "
            "give a larger --max-length, or a model that takes longer prompts"
        )


def _evaluate(lm: DeltahaltLM, task: Any, *, limit: int | None, chat_template: bool, seed: int) -> Any:
    """lm-eval's results for one task; `simple_evaluate` without its inventory of the machine, which takes seconds."""
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
            if name.isdecimal() and value == -1:  # RULER's length of prompts that there are none of
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
    """What each sample that has the metric got, behind the filter `kept`; nothing where `mean` is not their mean."""
    own = [sample for sample in samples if sample["filter"] == kept and isinstance(sample.get(metric), (int, float))]
    if metric.isdecimal():  # RULER: prompts of another length
        own = [sample for sample in own if sample[metric] != -1]
    values = tuple(float(sample[metric]) for sample in sorted(own, key=itemgetter("doc_id")))
    return values if values and math.isclose(fmean(values), mean, abs_tol=1e-9) else ()
