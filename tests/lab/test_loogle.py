"""LooGLE from local files: a row a question, and its scores without an encoder."""

import json
from pathlib import Path

import pytest

from deltahalt import InputError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'deltahalt[eval]'")

from deltahalt.lab.harness.loogle import questions, score_cloze, score_text, share
from helpers.local_tasks import DOCUMENT, MASKS, tasks_of, write


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
