"""LongBench-E, RULER and needles from local files in their own layouts: prompts and scores, and what is missing."""

from pathlib import Path

import pytest

from deltahalt import InputError
from deltahalt.loading.models import LoadedModel

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

from deltahalt.lab.harness.local import in_turn, read_local
from deltahalt.lab.harness.loogle import questions
from deltahalt.lab.harness.lookup import find_tasks
from deltahalt.lab.harness.needle import DEPTHS, needle_rows
from helpers.local_tasks import DOCUMENT, LONGBENCH_E, tasks_of


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


def test_rulers_prompts_are_scored_by_length(data: Path) -> None:
    tasks = tasks_of("niah_multikey_3", data=data, lengths=(128, 256))
    docs = list(tasks["niah_multikey_3"].eval_docs)
    assert [doc["max_length"] for doc in docs] == [128, 256, 128, 256]  # in turn: the first few are of all lengths
    assert tasks["niah_multikey_3"].process_results(docs[2], ["it is Cork"]) == {"128": 0.5}
    assert tasks["niah_multikey_3"].process_results(docs[3], ["LAMP, Cork"]) == {"256": 1}


def test_rulers_answer_begins_as_its_file_says(data: Path) -> None:
    task = tasks_of("ruler_qa_squad", data=data, lengths=(128,))["ruler_qa_squad"]
    assert (
        task.fewshot_context(task.eval_docs[0], 0, gen_prefix=task.doc_to_prefix(task.eval_docs[0])) == "Where? It is"
    )


def test_lists_of_unequal_length_take_turns_to_their_ends() -> None:
    assert in_turn([[{"a": 1}, {"a": 2}, {"a": 3}], [{"b": 1}]]) == [{"a": 1}, {"b": 1}, {"a": 2}, {"a": 3}]


def test_needles_lie_at_all_depths_of_prompts_that_fit(data: Path, loaded_tiny: LoadedModel) -> None:
    rows = needle_rows(data, loaded_tiny.tokenizer, [400, 700])
    assert rows == needle_rows(data, loaded_tiny.tokenizer, [400, 700])
    assert [row["max_length"] for row in rows] == [400, 700] * len(DEPTHS)
    assert sorted(DEPTHS) == [depth / 10 for depth in range(11)]
    assert (min(DEPTHS[:3]), max(DEPTHS[:3])) == (0, 1)  # what a limit leaves is not all shallow
    for length in (400, 700):
        own = [row for row in rows if row["max_length"] == length]
        places = [row["input"].index(row["outputs"][0]) for row in own]
        assert sorted(places) == [place for _, place in sorted(zip(DEPTHS, places, strict=True))]
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


def test_without_data_needle_and_loogle_ask_for_it() -> None:
    with pytest.raises(InputError, match="--data FOLDER that holds essays"):
        find_tasks(["needle"])
    with pytest.raises(InputError, match="give --data FOLDER"):
        questions("shortdep_qa")


def test_without_a_network_data_is_asked_for(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot download the data of longbench_lcc_e: give --data FOLDER"):
        find_tasks(["longbench_lcc_e"])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        find_tasks(["ruler"], data=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("{", "not JSON"), ("[]", "not a JSON object"), ("{}", "no input"), ('{"input": 1}', "no outputs")],
)
def test_a_line_in_another_layout_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"input": "\u2028", "outputs": []}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=f"line 2: .*{complaint}"):
        read_local(path, input=str, outputs=list)
