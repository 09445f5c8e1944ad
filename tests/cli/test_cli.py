"""The command, run in this process on a tiny model and, once, on the real one."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from deltahalt.answering.ask import Answer
from deltahalt.answering.demo import EXPECTED, FACT
from deltahalt.cli.answer_table import show_answers
from deltahalt.loading.models import load
from deltahalt.profile import Choice, Profile, Signature
from helpers.command import TEXT, deltahalt

SMALL = ["--keep-first", "4", "--keep-last", "8"]
DASH = ["--policy", "dash", *SMALL]


def answers_in(shown: str) -> list[dict[str, Any]]:
    """The list of answers that --json prints."""
    return list(json.loads(shown)["answers"])


def run(folder: Path, document: str, *options: str) -> int:
    question = ["--question", "What is a module?", "--max-new-tokens", "3"]
    return deltahalt("run", "--model", str(folder), "--document", document, *question, *options)


def test_run_answers_with_the_policy(tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_folder, document, *DASH, "--json") == 0
    (answer,) = answers_in(capsys.readouterr().out)
    assert answer["new_tokens"] <= 3
    assert (answer["question"], answer["policy"]) == ("What is a module?", "dash")
    assert answer["ran"] == "dash:keep_first=4,keep_last=8"
    assert answer["lengths"][0] == answer["prompt_tokens"] > answer["lengths"][-2]


def test_compare_puts_the_full_model_beside_it(
    tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_folder, document, *DASH, "--compare", "--json") == 0
    full, halted = answers_in(capsys.readouterr().out)
    assert set(full["lengths"]) == {full["prompt_tokens"]}
    assert halted["flops"] < full["flops"]
    assert halted["cache_bytes"] < full["cache_bytes"]


@pytest.mark.parametrize(
    ("policy", "kept"), [("d3:alpha=0.5,core=2", None), ("gemfilter:start=2,pruning_ratio=0.5", 0.5)]
)
def test_methods_of_other_stages_run_by_the_same_option(
    policy: str, kept: float | None, tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """GemFilter drops half of the document's tokens, and none of the question's."""
    assert run(tiny_folder, document, "--policy", policy, "--compare", "--json") == 0
    full, other = answers_in(capsys.readouterr().out)
    assert other["prompt_tokens"] == full["prompt_tokens"]
    words = len(TEXT.strip()) - TEXT.count("th") - TEXT.count("in")  # tokens of a byte, save for two
    dropped = round(kept * words) if kept else 0
    assert other["lengths"] == [full["prompt_tokens"] - dropped] * 6


def test_several_questions_are_answered_after_one_prefill_that_sees_none(
    tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--question", "Who wrote it?", "--compare", "--json"]
    assert run(tiny_folder, document, *DASH, *more) == 0
    shown = answers_in(capsys.readouterr().out)
    full, halted = shown[:2], shown[2:]
    assert [answer["question"] for answer in shown] == ["What is a module?", "Who wrote it?"] * 2
    assert run(tiny_folder, document, *DASH, "--json") == 0
    (alone,) = answers_in(capsys.readouterr().out)
    assert len(full) == len(halted) == 2
    assert full[0]["prompt_tokens"] == halted[1]["prompt_tokens"] < alone["prompt_tokens"]
    assert {answer["lengths"][-2] for answer in halted} == {halted[0]["lengths"][-2]}
    assert halted[0]["lengths"][-2] < halted[0]["prompt_tokens"]
    assert run(tiny_folder, document, *DASH, *more[:3]) == 0
    shown = capsys.readouterr().out
    assert all(f"{number}. " in shown for number in (1, 2))


def test_for_several_questions_auto_is_query_free(
    tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_folder, document, "--question", "Who wrote it?", "--json") == 0
    assert {answer["policy"] for answer in answers_in(capsys.readouterr().out)} == {"auto-query-free"}


def test_a_method_that_needs_the_question_is_refused_several(
    tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_folder, document, "--question", "Who wrote it?", "--policy", "gemfilter:start=2") == 2
    assert "ask one question, or choose a policy" in capsys.readouterr().err


def test_the_table_shows_what_was_asked_for(
    tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_folder, document, *DASH, "--compare") == 0
    shown = capsys.readouterr().out
    for label in ("answer", "prefill seconds", "prefill TFLOPs", "K/V cache MB", "tokens per layer", "full model"):
        assert label in shown


def test_what_took_longer_is_said_to_be_more(capsys: pytest.CaptureFixture[str]) -> None:
    full = Answer("", 9, 1, (9, 9), prefill_seconds=2.0, decode_seconds=0.0, flops=10**12, cache_bytes=10**6)
    show_answers(Console(width=200), {"full": full, "slow": replace(full, prefill_seconds=5.0, flops=4 * 10**11)})
    seconds, flops = (line for line in capsys.readouterr().out.splitlines() if "prefill" in line)
    assert "5.00  (2.50x more)" in seconds
    assert "0.40  (2.50x less)" in flops


def test_options_of_a_policy_reach_it(tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_folder, document, *DASH, "--start", "1", "--pruning-ratio", "0.5", "--json") == 0
    (answer,) = answers_in(capsys.readouterr().out)
    prompt = answer["prompt_tokens"]
    kept = prompt - round(0.5 * (prompt - 12))
    assert answer["lengths"] == [prompt, prompt, kept, kept, kept, 1]


@pytest.mark.parametrize("policy", ["auto", "profile.json"])
def test_options_override_what_a_profile_chose_and_the_output_says_so(
    policy: str, tiny_folder: Path, document: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if policy != "auto":
        signature = Signature.of(load(str(tiny_folder)).model.get_decoder())
        policy = str(tmp_path / policy)
        Profile("tiny", signature, (Choice("max-sim:pruning_ratio=0.35", 1.7, 0.0, 1.0),), {}).write(Path(policy))
    given = (
        "--pruning-ratio",
        "0.5",
        "--start",
        "1",
        "--keep-first",
        "4",
        "--keep-last",
        "32",
        "--boundary",
        "attention",
    )
    assert run(tiny_folder, document, "--policy", policy, *given, "--json") == 0
    shown = capsys.readouterr()
    (answer,) = answers_in(shown.out)
    prompt = answer["prompt_tokens"]
    kept = prompt if policy == "auto" else prompt - round(0.5 * (prompt - 36))  # the default leaves short prompts whole
    assert answer["lengths"] == [prompt] * 2 + [kept] * 3 + [prompt if policy == "auto" else 1]
    assert f"{policy}: pruning_ratio=0.5 replaces 0.35" in shown.err
    assert f"{policy}: {'both-ends' if policy == 'auto' else 'max-sim'}:" in shown.err
    assert ("default for uncalibrated models" in shown.err) == (policy == "auto")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policy", "dense", "--pruning-ratio", "0.5"], "dense takes no options"),
        (["--policy", "dash:start=2", "--start", "3"], "start is given twice: as 2 in 'dash:start=2', and as 3"),
        (["--policy", "auto:nan"], "auto:1.7"),
        (["--policy", "auto:"], "auto:1.7"),
        (["--policy", "no.json:2"], "there is no profile no.json"),
        (["--pruning-ratio", "nan"], "it must be a finite number"),
        (["--policy", "dahs"], "did you mean 'dash'?"),
        (["--policy", "visionzip"], "look --vision-policy"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    options: list[str], complaint: str, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Path("no/such/model"), document, *options) == 2
    assert complaint in capsys.readouterr().err


def test_a_document_comes_from_standard_input(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    assert run(tiny_folder, "-", *DASH, "--json") == 0
    (answer,) = answers_in(capsys.readouterr().out)
    assert answer["prompt_tokens"] > 100


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\x00\x01\x02", "is binary"), (b"caf\xe9", "is not UTF-8"), (b" \n", "is empty")],
)
def test_a_document_that_is_no_text_is_one_line(
    content: bytes, complaint: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_bytes(content)
    assert run(tiny_folder, str(tmp_path / "bad"), *DASH) == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert "Traceback" not in shown


def test_a_missing_document_is_named(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_folder, "no/such/file.txt", *DASH) == 2
    assert "cannot read no/such/file.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policy", "snap"], "there is no policy 'snap'"),
        (["--policy", "dash", "--pruning-ratio", "1.5"], "pruning_ratio is 1.5"),
        (["--policy", "dash", "--start", "-3"], "start is -3"),
        (["--policy", "dash", "--start", "99"], "leaves no deeper layer"),
        (["--policy", "dash:scope=visual"], "needs a vision-language model"),
        (["--policy", "dash+uniform", "--start", "0.2"], "several stages"),
        (["--policy", "d3", "--min-prompt-tokens", "9"], "d3 does not halt tokens"),
        (["--policy", "d3", "--start", "3"], "d3 has no option 'start'"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], complaint: str, tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_folder, document, *options) == 2
    assert complaint in capsys.readouterr().err


def test_an_empty_question_is_refused(tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("run", "--model", str(tiny_folder), "--document", document, "--question", " ") == 2
    assert "the question is empty" in capsys.readouterr().err


def test_a_prompt_too_long_for_the_model_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 10)
    assert run(tiny_folder, str(tmp_path / "long.txt"), *DASH) == 2
    assert "give a shorter document" in capsys.readouterr().err


@pytest.mark.real_weights
@pytest.mark.usefixtures("smollm2")
def test_demo_answers_right_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert EXPECTED in FACT
    assert deltahalt("demo", "--json") == 0
    full, halted = answers_in(capsys.readouterr().out)
    assert full["prompt_tokens"] >= 4000
    assert EXPECTED in full["text"]
    assert EXPECTED in halted["text"]
    assert halted["lengths"][-2] < 0.7 * full["lengths"][-2]


def test_a_profile_is_written_and_then_used(
    tiny_folder: Path, tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, profile = tmp_path / "samples.jsonl", tmp_path / "profile.json"
    data.write_text(json.dumps({"task": "qa", "prompt": TEXT + "A line of text. " * 14, "answer": None}))
    assert deltahalt("calibrate", "--model", str(tiny_folder), "--data", str(data), "--out", str(profile)) == 0
    assert profile.name in capsys.readouterr().out.replace("\n", "")
    (choice,) = json.loads(profile.read_text())["choices"]
    assert run(tiny_folder, document, "--policy", str(profile), "--json") == 0
    said = capsys.readouterr()
    assert [answer["policy"] for answer in answers_in(said.out)] == [str(profile)]
    assert f"{profile}: {choice['policy']}" in said.err
    assert run(tiny_folder, document, "--policy", "no-such.json") == 2
    assert "no-such.json" in capsys.readouterr().err


def test_a_model_without_a_profile_gets_the_cautious_default(
    tiny_folder: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_folder, document, "--json") == 0
    said = capsys.readouterr()
    assert [answer["policy"] for answer in answers_in(said.out)] == ["auto"]
    assert "auto: both-ends:start=0,pruning_ratio=0.35" in said.err
