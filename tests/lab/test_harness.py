"""`deltahalt eval`: what runs, what its rows say, and what is refused; dense is lm-eval's own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from deltahalt import InputError, UnsupportedError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

import lm_eval
from lm_eval.models.huggingface import HFLM

from deltahalt.integrations.lm_eval import DeltahaltLM
from deltahalt.lab.harness import run as runner
from deltahalt.lab.harness.lookup import OWN_TASKS, find_tasks
from deltahalt.lab.harness.run import run_tasks
from helpers.local_tasks import tasks_of


@pytest.mark.parametrize("batch", [1, 3])
def test_dense_scores_are_lm_evals_own(batch: int, tiny_folder: Path, data: Path, offline: None) -> None:
    names = ["longbench_trec_e", "longbench_triviaqa_e", "longbench_passage_count_e"]
    shared = {"device": "cpu", "dtype": "float32", "batch_size": batch}
    answers = []
    for lm in (HFLM(str(tiny_folder), **shared), DeltahaltLM(str(tiny_folder), **shared)):
        results = lm_eval.evaluate(lm, {"tasks": tasks_of(*names, data=data)}, log_samples=True)
        answers.append((results["results"], [[s["resps"] for s in results["samples"][name]] for name in names]))
    assert answers[0] == answers[1]


def test_ctrl_c_leaves_the_tasks_evaluated_until_then(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def run(lm: Any, task: Any, **options: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(task.task_name)
        return one(lm, task, **options)

    one = runner._evaluate
    monkeypatch.setattr(runner, "_evaluate", run)
    rows, options = tmp_path / "rows.jsonl", ["--lengths", "256", "--limit", "1", "--max-length", "320"]
    names = "niah_multikey_3,longbench_trec_e"
    assert evaluate("--tasks", names, "--policy", "dense", *options, "--rows", str(rows)) == 130
    shown = capsys.readouterr()
    assert "niah_multikey_3" in shown.out
    assert shown.err.strip().splitlines()[-1] == "deltahalt: interrupted"
    assert [json.loads(line)["task"] for line in rows.read_text().splitlines()] == ["niah_multikey_3"]


def test_no_network_is_called_and_rows_say_what_ran(
    evaluate: Callable[..., int], tiny_folder: Path, tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "out" / "rows.jsonl"
    names = "longbench_trec_e,niah_multikey_3,needle,loogle_shortdep_cloze"
    policy = "dash:start=1,keep_first=4,keep_last=8"
    options = ["--lengths", "256", "--limit", "2", "--batch-size", "2", "--max-length", "320", "--seed", "5"]
    assert evaluate("--tasks", names, "--policy", policy, *options, "--rows", str(rows)) == 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["task"], row["metric"]) for row in written] == [
        ("longbench_trec_e", "score"),
        ("longbench_trec_e", "classification_score"),
        ("niah_multikey_3", "256"),
        ("needle", "256"),
        ("loogle_shortdep_cloze", "exact_match"),
        ("loogle_shortdep_cloze", "partial_match"),
    ]
    for row in written:
        assert (row["policy"], row["seed"], row["dtype"], row["lm_eval"][:2]) == (policy, 5, "float32", "0.")
        assert row["model"] == tiny_folder.name  # and not where it lies
        assert row["samples"] == (1 if "cloze" in row["task"] else 2)
        assert row["attention"] == "sdpa"
        assert row["cut"] == row["samples"]  # none fits beside its answer
        if "cloze" in row["task"]:
            assert row["by_sample"] == []  # a share of masks is no mean over questions
        else:
            assert len(row["by_sample"]) == row["samples"]
            assert fmean(row["by_sample"]) == pytest.approx(row["value"])
        assert 0 <= row["value"] <= 1
        assert row["seconds"] > 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names.split(","))


def test_the_policy_reaches_the_model(evaluate: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    generate = DeltahaltLM._model_generate

    def watched(self: DeltahaltLM, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = generate(self, *args, **kwargs)
        kept.append((kwargs["context"].shape[1], self.policy.policy.kept(kwargs["context"].shape[1])))
        return out

    monkeypatch.setattr(DeltahaltLM, "_model_generate", watched)
    policy = ["--policy", "dash:start=1,keep_first=4,keep_last=8", "--limit", "1"]
    assert evaluate("--tasks", "longbench_trec_e", *policy) == 0
    ((prompt, active),) = kept
    assert active < prompt


def test_rows_say_what_generation_took(
    evaluate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt_tokens, new_tokens = [], []
    generate = DeltahaltLM._model_generate

    def watched(self: DeltahaltLM, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = generate(self, *args, **kwargs)
        prompt_tokens.append(int(kwargs["attention_mask"].sum()))
        new_tokens.append(out[:, kwargs["context"].shape[1] :].numel())
        return out

    monkeypatch.setattr(DeltahaltLM, "_model_generate", watched)
    rows = tmp_path / "rows.jsonl"
    options = ["--batch-size", "2", "--policy", "dash:start=1,keep_first=4", "--rows", str(rows)]
    assert evaluate("--tasks", "longbench_triviaqa_e,longbench_trec_e", *options) == 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    first, second = (next(row for row in written if task in row["task"]) for task in ("triviaqa", "trec"))
    assert len(prompt_tokens) == 4  # three samples a task, two at once
    for row, batches in ((first, slice(0, 2)), (second, slice(2, 4))):
        assert row["prompt_tokens"] == sum(prompt_tokens[batches])
        assert row["new_tokens"] == sum(new_tokens[batches]) > 0
        assert row["prefill_seconds"] > 0
        assert 0 < row["generation_seconds"] < row["seconds"] - row["prefill_seconds"]
        assert row["peak_bytes"] is None


def test_prompts_are_put_into_the_chat_format(
    evaluate: Callable[..., int], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "chat")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    (folder / "chat_template.jinja").write_text("{% for turn in messages %}User: {{ turn.content }} Model:{% endfor %}")
    prompts = []
    generate = DeltahaltLM._model_generate

    def watched(self: DeltahaltLM, *args: Any, **kwargs: Any) -> torch.Tensor:
        prompts.append(self.tok_decode(kwargs["context"][0].tolist()))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(DeltahaltLM, "_model_generate", watched)
    options = ["--tasks", "longbench_triviaqa_e", "--limit", "1", "--policy", "dense", "--max-length", "900"]
    assert evaluate(*options, "--apply-chat-template", "--model", str(folder)) == 0
    assert evaluate(*options, "--model", str(folder)) == 0
    asked, plain = prompts
    assert asked == f"User: {plain} Model:"


def test_two_processes_share_the_samples(evaluate: Callable[..., int], tiny_folder: Path, data: Path) -> None:
    policy = ["--policy", "dash:start=1,keep_first=4,keep_last=8"]
    options = ["--tasks", "niah_single_1,longbench_triviaqa_e", "--lengths", "256", *policy]
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--data", str(data)]
    # What accelerate launch does where there are GPUs.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python"]
    command = [*launch, str(Path(sys.executable).with_name("deltahalt")), "eval", *model, *options]
    one, two = data / "one.jsonl", data / "two.jsonl"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--rows", str(two)], capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert evaluate(*options, "--rows", str(one)) == 0
    alone, shared = ([json.loads(line) for line in path.read_text().splitlines()] for path in (one, two))
    assert {row["processes"] for row in shared} == {2}
    assert 0 < shared[0]["value"] < 1
    same = ("task", "metric", "value", "samples", "by_sample")
    assert len(set(alone[0]["by_sample"])) > 1
    assert [[row[field] for field in same] for row in alone] == [[row[field] for field in same] for row in shared]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tasks", "ruler", "--lengths", "128"], "niah_single_1_128.jsonl"),
        (["--tasks", "niah_multikey_3", "--lengths", "512"], "niah_multikey_3_512.jsonl"),
        (["--tasks", "arc_easy"], "'arc_easy' cannot be read from local files"),
        (["--tasks", "loogle"], "give its encoder"),
        (["--tasks", "loogle", "--bertscore", "no/such:2"], "no/such for BERTScore cannot be loaded"),
        (["--tasks", "loogle", "--bertscore", "roberta-large"], "give MODEL:LAYER"),
        (
            ["--tasks", "needle", "--bertscore", "none"],
            "is for LooGLE's tasks: leave it out",
        ),
        (["--tasks", "needle", "--lengths", "100"], "has no room for a haystack"),
        (["--tasks", "longbench_gov_report_e"], "answers of 512 tokens"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    options: list[str],
    complaint: str,
    evaluate: Callable[..., int],
    offline: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert evaluate(*options, "--policy", "dense") == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tasks", "longbench_hotpotqa"], "hotpotqa.jsonl"),
        (["--tasks", "no_such"], "'no_such' cannot be read from local files"),
        (["--tasks", "loogle"], "give its encoder"),
        (["--tasks", "longbench_trec_e", "--rows", "/"], "cannot write to /, since / is a folder:"),
    ],
)
def test_what_is_missing_is_named_before_the_weights_are_loaded(
    options: list[str],
    complaint: str,
    evaluate: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("deltahalt.integrations.lm_eval.load", lambda *_, **__: pytest.fail("loaded"))
    assert evaluate(*options) == 2
    assert complaint in capsys.readouterr().err


def test_a_chat_format_that_there_is_none_of_is_refused(
    evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--tasks", "longbench_trec_e", "--apply-chat-template", "--policy", "dense") == 2
    assert "has no chat template: leave --apply-chat-template out" in capsys.readouterr().err


def test_tasks_of_whole_texts_are_refused_before_anything_runs(
    tiny_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = DeltahaltLM(str(tiny_folder), "dash:start=1", device="cpu")
    tasks = find_tasks(["longbench_trec_e", "longbench_triviaqa_e"], data=data)
    monkeypatch.setattr(tasks[1], "OUTPUT_TYPE", "loglikelihood_rolling")
    with pytest.raises(UnsupportedError, match="longbench_triviaqa_e scores every token"):
        next(run_tasks(lm, tasks))


def test_lm_evals_own_command_knows_model_and_tasks(tiny_folder: Path, data: Path) -> None:
    settings = f"pretrained={tiny_folder},policy=dash,start=1,keep_first=4,keep_last=8,dtype=float32"
    task = ["--tasks", str(OWN_TASKS / "loogle" / "shortdep_cloze.yaml"), "--metadata", f"data={data}"]
    command = [sys.executable, "-m", "deltahalt.lab.harness", "--model", "deltahalt", "--model_args", settings, *task]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr.decode()
    assert "partial_match" in done.stdout.decode()


def test_lengths_that_ruler_has_no_prompts_of_have_no_rows(tiny_folder: Path, data: Path) -> None:
    (task,) = find_tasks(["niah_multikey_3"], data=data, lengths=(256,))
    score = task.config.process_results
    task.config.process_results = lambda doc, results: {"4096": -1.0} | score(doc, results)
    lm = DeltahaltLM(str(tiny_folder), device="cpu")
    assert [row.metric for row in run_tasks(lm, [task], limit=1)] == ["256"]


def test_rows_of_a_task_without_room_are_refused_before_anything_runs(tiny_folder: Path, data: Path) -> None:
    lm = DeltahaltLM(str(tiny_folder), device="cpu", max_length=64)
    tasks = find_tasks(["longbench_2wikimqa_e", "longbench_trec_e"], data=data)
    with pytest.raises(InputError, match="longbench_trec_e allows answers of 64 tokens"):
        next(run_tasks(lm, tasks))
