"""Find lm-eval's tasks by name, with data from a local folder if one is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.ruler import common_utils

from deltahalt.errors import InputError
from deltahalt.files import is_folder
from deltahalt.integrations.lm_eval import without_warnings
from deltahalt.lab.harness.bertscore import BERTSCORE, load_bertscore
from deltahalt.lab.harness.local import longbench_rows, ruler_rows
from deltahalt.lab.harness.loogle import answered, score_text
from deltahalt.lab.harness.needle import needle_rows

LM_EVAL_TASKS, OWN_TASKS = Path(lm_eval.tasks.__file__).parent, Path(__file__).parent / "tasks"
LONGBENCH, RULER = LM_EVAL_TASKS / "longbench", LM_EVAL_TASKS / "ruler"
NEEDLE, NEEDLE_TASK = (
    "needle",
    "niah_single_2",
)  # RULER's task in essays, with the needle task's prompt format and score
# lm-eval's group longbench_e lacks four of the thirteen tasks; the tag has all of them.
ALIASES = {"longbench_e": "longbench_tasks_e"}
MEAN = {"aggregation": "mean", "higher_is_better": True}

Config = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LocalData:
    """The arguments of `find_tasks` about local data and its scoring. folder: the argument `data`."""

    folder: Path
    lengths: Sequence[int]
    tokenizer: Any
    bertscore: str | None


def find_tasks(
    names: Sequence[str],
    *,
    data: Path | None = None,
    lengths: Sequence[int] = (4096,),
    model: str = "",
    tokenizer: Any = None,
    bertscore: str | None = None,
) -> list[Task]:
    """Return the tasks called `names`, with groups and tags replaced by their tasks.

    Args:
        names: Names of lm-eval's tasks, groups or tags, or "needle" or "loogle".
        data: A folder in the layouts of `local.py`. If given, nothing is downloaded, and tasks without a layout raise
            an error.
        lengths: Prompt lengths in tokens, for RULER and the needle task.
        model: The model whose tokenizer measures these lengths where RULER's data is downloaded.
        tokenizer: The tokenizer that measures the lengths of needle prompts.
        bertscore: The encoder of LooGLE's BERTScore, see `BertScore`, or "none".

    Raises:
        InputError: For an unknown name, for data that cannot be read or downloaded, and for `bertscore` without a task
            of LooGLE.
        ModelError: For an encoder that cannot be loaded.
    """
    if data is None:
        if NEEDLE in names:
            raise InputError("the needle task needs texts for its haystack: give --data FOLDER that holds essays/*.txt")
        metadata = {"max_seq_lengths": list(lengths), "pretrained": model}
        manager = TaskManager(include_path=OWN_TASKS, metadata=metadata)
        specs: list[Any] = [_known(manager, ALIASES.get(name, name)) for name in names]
    else:
        if not is_folder(data):
            raise InputError(f"there is no folder {data}: give one that holds longbench, ruler, loogle or essays")
        manager = TaskManager(
            include_path=[LONGBENCH, RULER, OWN_TASKS], include_defaults=False, metadata={"data": str(data)}
        )
        local = LocalData(data, lengths, tokenizer, bertscore)
        leaves = dict.fromkeys(leaf for name in names for leaf in _leaves(manager, ALIASES.get(name, name)))
        specs = [_config(manager, leaf, local) for leaf in leaves]
    try:
        with without_warnings("lm_eval.api.task"):  # it warns that lengths can be set in its own command
            found: list[Task] = list(manager.load(specs)["tasks"].values())
    except ConnectionError as error:
        raise InputError(
            f"cannot download the data of {', '.join(names)}: give --data FOLDER with the benchmarks' own files"
        ) from error
    if bertscore is not None and not any("loogle" in str(task.config.task) for task in found):
        raise InputError(f"an encoder for BERTScore ({bertscore}) is for LooGLE's tasks: leave it out")
    return found


def _known(manager: TaskManager, name: str) -> str:
    if name not in manager.task_index:
        raise InputError(
            f"there is no task {name!r}: give needle, loogle, or one of those that `lm_eval ls tasks` lists"
        )
    return name


def _leaves(manager: TaskManager, name: str) -> list[str]:
    """Return the names of the tasks that a task, group or tag stands for."""
    if name == NEEDLE:
        return [NEEDLE]
    if name not in manager.task_index:
        raise InputError(
            f"{name!r} cannot be read from local files: with --data, give longbench_e, ruler, loogle, needle or tasks "
            "of these"
        )
    entry = manager.task_index[name]
    members = sorted(entry.tags) if entry.cfg is None else entry.cfg["task"]
    return [name] if isinstance(members, str) else [leaf for member in members for leaf in _leaves(manager, member)]


def _config(manager: TaskManager, name: str, local: LocalData) -> Config:
    """Return lm-eval's configuration of a task, with data from the local folder."""
    path = manager.task_index[NEEDLE_TASK if name == NEEDLE else name].yaml_path
    if name == NEEDLE:
        rows = _test_split(lambda: needle_rows(local.folder, local.tokenizer, local.lengths))
        return _by_length(path, local.lengths) | {"task": NEEDLE, "custom_dataset": rows}
    if path.parent == LONGBENCH:
        return load_yaml(path) | {"custom_dataset": _test_split(lambda: longbench_rows(local.folder, name))}
    if path.parent == RULER:
        rows = _test_split(lambda: ruler_rows(local.folder, name, local.lengths))
        return _by_length(path, local.lengths) | {"custom_dataset": rows}
    config = load_yaml(path)
    return _with_bertscore(config, local.bertscore) if config["process_results"] is score_text else config


def _test_split(rows: Callable[[], Rows]) -> Callable[..., dict[str, Dataset]]:
    """Return the function that lm-eval calls, with a task's metadata, for the task's data."""
    return lambda **_: {"test": Dataset.from_list(rows())}


def _by_length(path: Path, lengths: Sequence[int]) -> Config:
    """Return the configuration of a RULER task, with a score for each prompt length.

    The YAML's functions are not resolved, since the modules that make RULER's data download files when imported.
    """
    config = load_yaml(path, resolve_func=False)
    process = getattr(common_utils, config["process_results"].rpartition(".")[2])

    def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        length = str(doc["max_length"])
        return {length: process(doc, results)[length]}

    metrics = [{"metric": str(length), **MEAN} for length in lengths]
    return config | {"process_results": score, "metric_list": metrics}


def _with_bertscore(config: Config, encoder: str | None) -> Config:
    """Return the configuration of a LooGLE task, with BERTScore in addition to ROUGE-L unless `encoder` is "none"."""
    if encoder is None:
        raise InputError(
            f"{config['task']} is also scored by BERTScore: give its encoder (--bertscore roberta-large:17, or a local "
            "FOLDER:LAYER), or --bertscore none"
        )
    if encoder == "none":
        return config
    bertscore = load_bertscore(encoder)

    def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        return score_text(doc, results) | {BERTSCORE: bertscore.f1(answered(results), doc["answer"])}

    metrics = [*config["metric_list"], {"metric": BERTSCORE, **MEAN}]
    metadata = config["metadata"] | {BERTSCORE: Path(encoder).name}
    return config | {"process_results": score, "metric_list": metrics, "metadata": metadata}
