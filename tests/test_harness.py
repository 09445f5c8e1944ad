"""`deltahalt eval`: benchmarks from local files in their own layouts, through lm-eval's task files and metrics."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from deltahalt import InputError, cli
from deltahalt.errors import ModelError
from deltahalt.models import LoadedModel

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

import lm_eval
from lm_eval.models.huggingface import HFLM

from deltahalt.harness.bertscore import BertScore
from deltahalt.harness.local import read_jsonl
from deltahalt.harness.loogle import questions, score_cloze, score_text, share
from deltahalt.harness.lookup import OWN_TASKS, find_tasks
from deltahalt.harness.needle import DEPTHS, needle_rows
from deltahalt.harness.rows import EvalRow
from deltahalt.harness.run import run_tasks
from deltahalt.integrations.lm_eval import DeltahaltLM
from deltahalt.rows import read_rows

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


@pytest.fixture
def data(tmp_path: Path) -> Path:
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
        write(tmp_path / "longbench" / f"{task}_e.jsonl", *rows)
    for length in (128, 256):
        rows = [{"index": n, "input": f"{DOCUMENT}Which {n}?", "outputs": ["lamp", "Cork"]} for n in (0, 1)]
        write(tmp_path / "ruler" / f"niah_multikey_3_{length}.jsonl", *rows)
    write(tmp_path / "ruler" / "qa_1_128.jsonl", {"input": "Where?", "outputs": ["Cork"], "answer_prefix": " It is"})
    letters = [{"input": f"{DOCUMENT} {letter}?", "outputs": [letter, "e"]} for letter in "abcdf"]
    write(tmp_path / "ruler" / "niah_single_1_256.jsonl", *letters)
    pairs = [{"Q": "Where is it?", "A": "in the harbour", "S": []}, {"Q": "What\u2028is it?", "A": 3, "type": "sum"}]
    for task, own in {
        "shortdep_qa": {"qa_pairs": repr(pairs), "output": "none"},
        "longdep_qa": {"qa_pairs": repr(pairs), "output": "None"},
        "shortdep_cloze": {"qa_pairs": repr([{"Q": "<mask-0> of <mask-1>", "A": MASKS}]), "output": "None"},
        "longdep_summarization": {"qa_pairs": "none", "question": "none", "output": "Ada lights the harbour."},
    }.items():
        write(tmp_path / "loogle" / f"{task}.jsonl", {"input": DOCUMENT, "title": "Lamps"} | own)
    for name in ("one", "two"):
        essay = tmp_path / "essays" / f"{name}.txt"
        essay.parent.mkdir(exist_ok=True)
        essay.write_text(f"This is essay {name}. " + "The tide goes out. The tide comes in. " * 5)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that opens a connection, or as much as looks up a host."""

    def refuse(*address: Any) -> None:
        raise AssertionError(f"the network was called: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def evaluate(tiny_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`deltahalt eval` of the tiny model on the local data; returns its exit status."""

    def run(*options: str) -> int:
        model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu", "--data", str(data)]
        monkeypatch.setattr(sys, "argv", ["deltahalt", "eval", *model, *options])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0)

    monkeypatch.setenv("COLUMNS", "200")
    return run


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT with random weights and a tokenizer of whole words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["the", "a", "lamp", "harbour", "tide", "is", "in", "out"]]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    folder = tmp_path / "encoder"
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


def tasks_of(*names: str, **options: Any) -> dict[str, Any]:
    return {task.task_name: task for task in find_tasks(names, **options)}


def test_longbench_e_is_the_thirteen_tasks_of_the_paper(data: Path, offline: None) -> None:
    tasks = tasks_of("longbench_e", data=data)
    assert set(tasks) == {f"longbench_{name}_e" for name in LONGBENCH_E}
    for name, answer in LONGBENCH_E.items():
        task = tasks[f"longbench_{name}_e"]
        docs = list(task.eval_docs)
        assert [doc["context"][0] for doc in docs] == ["1", "2", "3"]
        assert DOCUMENT in task.doc_to_text(docs[0])
        assert task.process_results(docs[0], [answer])["score"] == pytest.approx(1, abs=1e-6)
        assert task.process_results(docs[0], ["?"])["score"] < 0.1


def test_a_question_of_longbench_is_in_its_prompt(data: Path) -> None:
    tasks = tasks_of("longbench_e", data=data)
    asked = {name for name, task in tasks.items() if "What does Ada keep" in task.doc_to_text(task.eval_docs[0])}
    assert asked == set(tasks) - {
        f"longbench_{name}_e" for name in ("gov_report", "multi_news", "passage_count", "lcc")
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_dense_scores_are_lm_evals_own(batch: int, tiny_folder: Path, data: Path, offline: None) -> None:
    names = ["longbench_trec_e", "longbench_triviaqa_e", "longbench_passage_count_e"]
    shared = {"device": "cpu", "dtype": "float32", "batch_size": batch}
    answers = []
    for lm in (HFLM(str(tiny_folder), **shared), DeltahaltLM(str(tiny_folder), **shared)):
        results = lm_eval.evaluate(lm, {"tasks": tasks_of(*names, data=data)}, log_samples=True)
        answers.append((results["results"], [[s["resps"] for s in results["samples"][name]] for name in names]))
    assert answers[0] == answers[1]


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
        assert 0 <= row["value"] <= 1
        assert row["seconds"] > 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names.split(","))


def test_the_policy_reaches_the_model(evaluate: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    generate = DeltahaltLM._model_generate

    def watched(self: DeltahaltLM, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = generate(self, *args, **kwargs)
        kept.append((kwargs["context"].shape[1], self.policy.kept(kwargs["context"].shape[1])))
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
    (folder / "chat_template.jinja").write_text("{% for turn in messages %}User: {{ turn.content }} Model:{% endfor %}")
    prompts = []
    generate = DeltahaltLM._model_generate

    def watched(self: DeltahaltLM, *args: Any, **kwargs: Any) -> torch.Tensor:
        prompts.append(self.tok_decode(kwargs["context"][0].tolist()))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(DeltahaltLM, "_model_generate", watched)
    options = ["--tasks", "longbench_triviaqa_e", "--limit", "1", "--policy", "dense", "--max-length", "900"]
    assert evaluate(*options, "--apply-chat-template", "--model", str(folder)) == 0
    assert evaluate(*options) == 0
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
    same = ("task", "metric", "value", "samples")
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
        (["--tasks", "needle", "--lengths", "100"], "has no haystack"),
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


def test_lm_evals_own_command_knows_model_and_tasks(tiny_folder: Path, data: Path) -> None:
    settings = f"pretrained={tiny_folder},policy=dash,start=1,keep_first=4,keep_last=8,dtype=float32"
    task = ["--tasks", str(OWN_TASKS / "loogle" / "shortdep_cloze.yaml"), "--metadata", f"data={data}"]
    command = [sys.executable, "-m", "deltahalt.harness", "--model", "deltahalt", "--model_args", settings, *task]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr.decode()
    assert "partial_match" in done.stdout.decode()


def test_without_data_needle_and_loogle_ask_for_it() -> None:
    with pytest.raises(InputError, match="--data FOLDER that holds essays"):
        find_tasks(["needle"])
    with pytest.raises(InputError, match="give --data FOLDER"):
        questions("shortdep_qa")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        find_tasks(["ruler"], data=tmp_path / "nowhere")


@pytest.mark.parametrize(("line", "complaint"), [("{", "not JSON"), ("[]", "no input"), ('{"input": 1}', "no outputs")])
def test_a_line_in_another_layout_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"input": "\u2028", "outputs": []}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=f"line 2: .*{complaint}"):
        read_jsonl(path, "input", "outputs")


def test_rulers_prompts_are_scored_by_length(data: Path) -> None:
    tasks = tasks_of("niah_multikey_3", data=data, lengths=(128, 256))
    docs = list(tasks["niah_multikey_3"].eval_docs)
    assert [doc["max_length"] for doc in docs] == [128, 128, 256, 256]
    assert tasks["niah_multikey_3"].process_results(docs[0], ["it is Cork"]) == {"128": 0.5}
    assert tasks["niah_multikey_3"].process_results(docs[2], ["LAMP, Cork"]) == {"256": 1}


def test_lengths_that_ruler_has_no_prompts_of_have_no_rows(tiny_folder: Path, data: Path) -> None:
    (task,) = find_tasks(["niah_multikey_3"], data=data, lengths=(256,))
    score = task.config.process_results
    task.config.process_results = lambda doc, results: {"4096": -1.0} | score(doc, results)
    lm = DeltahaltLM(str(tiny_folder), device="cpu")
    assert [row.metric for row in run_tasks(lm, [task], limit=1)] == ["256"]


def test_rulers_answer_begins_as_its_file_says(data: Path) -> None:
    task = tasks_of("ruler_qa_squad", data=data, lengths=(128,))["ruler_qa_squad"]
    assert (
        task.fewshot_context(task.eval_docs[0], 0, gen_prefix=task.doc_to_prefix(task.eval_docs[0])) == "Where? It is"
    )


def test_needles_lie_deeper_and_deeper_in_prompts_that_fit(data: Path, loaded_tiny: LoadedModel) -> None:
    rows = needle_rows(data, loaded_tiny.tokenizer, [400, 700])
    assert rows == needle_rows(data, loaded_tiny.tokenizer, [400, 700])
    assert [row["max_length"] for row in rows] == [400] * len(DEPTHS) + [700] * len(DEPTHS)
    for length in (400, 700):
        own = [row for row in rows if row["max_length"] == length]
        places = [row["input"].index(row["outputs"][0]) for row in own]
        assert all(earlier < later for earlier, later in pairwise(places))
        for row in own:
            tokens = len(loaded_tiny.tokenizer(f"{row['input']} {row['gen_prefix']}")["input_ids"])
            assert length - 64 < tokens <= length
            assert row["input"].count(row["outputs"][0]) == 1
    haystack = rows[-1]["input"]
    assert haystack.index("essay one") < haystack.index("essay two")


def test_a_needles_task_scores_what_is_found(data: Path, loaded_tiny: LoadedModel) -> None:
    task = tasks_of("needle", data=data, lengths=(256,), tokenizer=loaded_tiny.tokenizer)["needle"]
    doc = task.eval_docs[4]
    assert task.process_results(doc, [f"{doc['outputs'][0]}."]) == {"256": 1}
    assert task.process_results(doc, ["12345"]) == {"256": 0}


def test_a_needle_without_essays_says_so(tmp_path: Path, loaded_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="no essays in"):
        needle_rows(tmp_path, loaded_tiny.tokenizer, [400])


def test_loogle_has_a_row_a_question(data: Path) -> None:
    tasks = tasks_of("loogle", data=data, bertscore="none")
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        "loogle_shortdep_qa": 2,
        "loogle_longdep_qa": 2,
        "loogle_shortdep_cloze": 1,
        "loogle_longdep_summarization": 1,
    }
    for task in tasks.values():
        for doc in task.eval_docs:
            assert DOCUMENT in task.doc_to_text(doc)
            assert doc["question"] in task.doc_to_text(doc)
    assert [doc["answer"] for doc in tasks["loogle_longdep_qa"].eval_docs] == ["in the harbour", "3"]
    assert "{'<mask-0>': 'Ada Lovelace'" in tasks["loogle_shortdep_cloze"].doc_to_text(
        tasks["loogle_shortdep_cloze"].eval_docs[0]
    )


def test_loogle_questions_in_another_layout_are_named(data: Path) -> None:
    write(data / "loogle" / "shortdep_qa.jsonl", {"input": "", "qa_pairs": "[{'Q': 'Where?'}]", "output": ""})
    with pytest.raises(InputError, match=r"shortdep_qa.jsonl, line 1: qa_pairs"):
        questions("shortdep_qa", str(data))


def test_rouge_counts_the_words_in_common() -> None:
    # 3 of the 4 words said, in order, are among the 5 wanted.
    scores = score_text({"answer": "a lamp in the harbour"}, [" lamp in my harbour "])
    assert scores["rouge_l_recall"] == pytest.approx(3 / 5)
    assert scores["rouge_l"] == pytest.approx(2 * 3 / 5 * 3 / 4 / (3 / 5 + 3 / 4), abs=1e-6)
    assert score_text({"answer": "a lamp"}, [""]) == score_text({"answer": "a lamp"}, ["..."])
    assert score_text({"answer": "None"}, [""])["rouge_l"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "exact", "partial"),
    [
        ("{'<mask-0>': 'Ada Byron', '<mask-1>': 'Cork'}", 2, 2),
        ('{"<mask-0>": "Ada", "<mask-1>": "Lima"}', 0, 1),
        ("{'<mask-1>': 'Cork', '<mask-9>': 'Ada Byron'}", 1, 1),
        ("{'<mask-0>': ['Ada'], '<mask-1>': None}", 0, 0),
        ("It is Ada Byron of Cork", 0, 0),
        ("['<mask-0>']", 0, 0),
        ("(" * 3000, 0, 0),
    ],
)
def test_masks_are_right_or_partly_right(answer: str, exact: int, partial: int) -> None:
    scores = score_cloze({"answer": json.dumps(MASKS)}, [answer])
    assert scores == {"exact_match": (exact, 2), "partial_match": (partial, 2)}


def test_cloze_scores_are_shares_of_all_masks() -> None:
    assert share([(1, 2), (0, 1), (5, 5)]) == 6 / 8


@pytest.mark.parametrize(
    ("said", "wanted"), [("the lamp is in", "a lamp is out"), ("tide", "the tide is in the harbour")]
)
def test_bertscore_matches_each_word_with_the_nearest(said: str, wanted: str, encoder: Path) -> None:
    score = BertScore(f"{encoder}:2")

    def states(text: str) -> list[torch.Tensor]:
        out = score.model(**score.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        return list(out.hidden_states[2][0])

    def mean_of_best(those: list[torch.Tensor], others: list[torch.Tensor]) -> float:
        best = [max(float(torch.cosine_similarity(one, other, dim=0)) for other in others) for one in those[1:-1]]
        return sum(best) / len(best)

    with torch.inference_mode():
        precision = mean_of_best(states(said), states(wanted))
        recall = mean_of_best(states(wanted), states(said))
    assert score.f1(said, wanted) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert score.f1(said, said) == pytest.approx(1, abs=1e-5)
    assert score.f1("", wanted) == 0
    assert score.f1("tide " * 50, wanted) == score.f1("tide " * 14, wanted)  # the encoder takes 16 tokens


def test_loogles_answers_are_scored_by_the_encoder_given(data: Path, encoder: Path, offline: None) -> None:
    tasks = tasks_of("loogle", data=data, bertscore=f"{encoder}:2")
    task = tasks["loogle_shortdep_qa"]
    scores = task.process_results(task.eval_docs[0], ["in the harbour"])
    assert scores == pytest.approx({"rouge_l": 1, "rouge_l_recall": 1, "bertscore_f1": 1}, abs=1e-5)
    assert set(tasks["loogle_shortdep_cloze"].aggregation()) == {"exact_match", "partial_match"}


def test_a_row_of_bertscore_names_its_encoder(evaluate: Callable[..., int], tmp_path: Path, encoder: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    options = ["--bertscore", f"{encoder}:2", "--limit", "1", "--policy", "dense", "--rows", str(rows)]
    assert evaluate("--tasks", "loogle_shortdep_qa", *options) == 0
    named = {row.metric: row.encoder for row in read_rows(rows, EvalRow)}
    assert named == {"rouge_l": "", "rouge_l_recall": "", "bertscore_f1": f"{encoder.name}:2"}


@pytest.mark.parametrize(("layer", "complaint"), [("9", "no layer 9"), ("two", "MODEL:LAYER"), ("", "MODEL:LAYER")])
def test_an_encoders_layer_must_exist(layer: str, complaint: str, encoder: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        BertScore(f"{encoder}:{layer}")


def test_an_encoder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--bertscore none"):
        BertScore(f"{tmp_path / 'nothing'}:2")


def test_rows_of_a_task_without_room_are_refused_before_anything_runs(tiny_folder: Path, data: Path) -> None:
    lm = DeltahaltLM(str(tiny_folder), device="cpu", max_length=64)
    tasks = find_tasks(["longbench_2wikimqa_e", "longbench_trec_e"], data=data)
    with pytest.raises(InputError, match="longbench_trec_e allows answers of 64 tokens"):
        next(run_tasks(lm, tasks))
