"""The one reader of JSON lines: what it takes, and that every bad line is one typed error with its file and line."""

import gzip
import json
from pathlib import Path

import pytest

from deltahalt import InputError
from deltahalt.lab.evaluation.samples import read_samples
from deltahalt.lab.harness.local import ruler_rows
from deltahalt.lab.jsonl import read_jsonl

SEPARATORS = "one\u2028two\u2029three\u0085four\x1cfive\x0bsix"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_at_a_line_feed_and_nowhere_else(end: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    objects = [{"text": SEPARATORS}, {"text": "next"}]
    lines = [json.dumps(one, ensure_ascii=False).replace("\\u001c", "\x1c") for one in objects]
    file.write_bytes((end.join([*lines, "", ""])).replace("\x1c", "\\u001c").encode("utf-8-sig"))
    assert list(read_jsonl(file)) == [(f"{file}, line {number}", one) for number, one in enumerate(objects, 1)]


def test_a_compressed_file_reads_as_a_plain_one(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [one for _, one in read_jsonl(file)] == [{"a": 1}, {"a": 2}]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"cannot read {file} .*: give a file that is whole"):
        list(read_jsonl(file))
    file.write_bytes(b'{"a": 1}\n')
    with pytest.raises(InputError, match=f"cannot read {file} .*: give a file that is whole"):
        list(read_jsonl(file))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"GGUF\0\1", "it is binary, not text"),
        (b"caf\xe9", "it is not UTF-8 text (byte 3)"),
        (b"{", "it is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it is not JSON"),
        (b'{"a": ' * 20_000, "its JSON is nested too deep"),
        (b"[" * 100_000, "its JSON is nested too deep"),
        (b"[1]", "it is not a JSON object, but a list"),
        (b"null", "it is not a JSON object, but null"),
        (b'{"a": "\\ud800"}', "it has a lone surrogate"),
        (b'{"\\udfff": 1}', "it has a lone surrogate"),
        (b'{"b": 1}', "it has no a"),
        (b'{"a": []}', "a is a list, not text"),
    ],
)
def test_a_bad_line_is_named(line: bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"a": ""}\n' + line + b'\n{"a": ""}\n')
    with pytest.raises(InputError) as caught:
        list(read_jsonl(file, hint="give another", fields={"a": str}))
    assert str(caught.value).startswith(f"{file}, line 2: {complaint}")
    assert str(caught.value).endswith(": give another")
    assert "\n" not in str(caught.value)


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"a": "\\ud83d\\ude00"}')
    assert [one for _, one in read_jsonl(tmp_path / "lines.jsonl")] == [{"a": "\N{GRINNING FACE}"}]


def test_samples_keep_line_separators_that_are_part_of_a_prompt(tmp_path: Path) -> None:
    sample = {"task": "qa", "prompt": "one\u2028two\u2029three\u0085", "answer": None}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    (read,) = read_samples(tmp_path / "samples.jsonl")
    assert read.prompt == sample["prompt"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prompt": ["a", "b"]}, "line 1: prompt is a list, not text"),
        ({"task": 3}, "line 1: task is a whole number, not text"),
        ({"answer": 7}, "line 1: answer is a whole number, not text or null"),
        ({"lead": None}, "line 1: lead is null, not text"),
        ({"question": {}}, "line 1: question is an object, not text"),
    ],
)
def test_a_sample_whose_fields_are_of_another_type_is_refused(
    fields: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    sample = {"task": "qa", "prompt": "p", "answer": "a"} | fields
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample))
    with pytest.raises(InputError, match=complaint):
        read_samples(tmp_path / "samples.jsonl")


def test_no_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no samples: give JSONL with task"):
        read_samples(tmp_path / "samples.jsonl")


def test_a_benchmark_s_fields_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "ruler" / "niah_single_1_64.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps({"input": ["text"], "outputs": ["a"]}))
    with pytest.raises(InputError, match="line 1: input is a list, not text: put the benchmark's own file there"):
        ruler_rows(tmp_path, "niah_single_1", [64])
