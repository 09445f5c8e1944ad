"""`deltahalt embed`: what embeddings and rankings lose under policies, beside the full model's own."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import InputError, halting, parse_policy
from deltahalt.lab.evaluation.readout.measure import FULL, measure_texts
from deltahalt.lab.evaluation.readout.row import EmbedRow
from deltahalt.lab.evaluation.readout.summary import kendall, markdown, ndcg, overlap, summarize
from deltahalt.lab.evaluation.readout.texts import ENDING, Document, Text, make_documents, to_embed, to_rank
from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.facts import make_fact
from deltahalt.lab.rows.base import append_rows, read_rows
from deltahalt.loading.models import LoadedModel
from helpers.command import deltahalt

POLICY = "random:start=2,keep_first=8,keep_last=16,pruning_ratio=0.5"
METHODS: dict[str, Any] = {POLICY: parse_policy(POLICY)}
WORDS = ("ship", "crane", "owl")
DOCUMENTS = [Document(f"The {word} is in the harbour. " * 9, f"Where is the {word}?") for word in WORDS]


@pytest.fixture(scope="module")
def rows(loaded_tiny: LoadedModel) -> list[EmbedRow]:
    return list(measure_texts(loaded_tiny, to_embed(DOCUMENTS), METHODS, 200))


def test_documents_are_the_same_again_and_about_as_long_as_wanted() -> None:
    documents = make_documents(5, 600)
    assert documents == make_documents(5, 600)
    assert len({document.text for document in documents}) == 5
    assert all(len(document.text) > 2_000 for document in documents)


def test_a_question_is_of_a_fact_that_the_cut_leaves() -> None:
    for document, seed in zip(made := make_documents(9, 600), range(9), strict=True):
        fact = make_fact(Draw("embed", seed))
        assert document.question in ("", fact.question)
        place = document.text.index(fact.sentence) / len(document.text)
        assert place < 0.65 if document.question else place > 0.35  # of a text that is cut at 1 / 1.4 of its length
    assert 0 < sum(bool(document.question) for document in made) < 9
    with pytest.raises(InputError, match=r"--queries is 9, and \d of the 9 documents"):
        to_rank(made, 9)


def test_a_text_is_cut_and_keeps_its_ending(loaded_tiny: LoadedModel) -> None:
    text = to_embed(DOCUMENTS)[0]
    ids, after = text.ids(loaded_tiny, 100)
    ending = loaded_tiny.tokenizer(ENDING, add_special_tokens=False).input_ids
    assert (ids.shape, after) == ((1, 100), len(ending))
    assert ids[0, -after:].tolist() == ending
    assert DOCUMENTS[0].text.startswith(loaded_tiny.tokenizer.decode(ids[0, :-after]))
    assert Text(DOCUMENTS[0].text, "").ids(loaded_tiny, 100)[1] == 0
    with pytest.raises(InputError, match="--tokens is 10"):
        text.ids(loaded_tiny, 10)


def test_vectors_are_those_of_a_halted_prefill(loaded_tiny: LoadedModel, rows: list[EmbedRow]) -> None:
    assert [row.policy for row in rows] == [FULL, POLICY] * 3
    for text, full, own in zip(to_embed(DOCUMENTS), rows[::2], rows[1::2], strict=True):
        ids, _ = text.ids(loaded_tiny, 200)
        with torch.no_grad():
            expected = [loaded_tiny.model.model(ids).last_hidden_state[0, -1]]
            with halting(loaded_tiny.model, POLICY) as halted:
                expected.append(loaded_tiny.model.model(ids).last_hidden_state[0, -1])
        for row, state in zip((full, own), expected, strict=True):
            assert math.fsum(value * value for value in row.vector) == pytest.approx(1, abs=1e-3)
            assert torch.tensor(row.vector) == pytest.approx(torch.nn.functional.normalize(state, dim=0), abs=1e-4)
        assert (full.speedup, own.speedup) == (1, halted.report.speedup_bound)
        assert own.tokens == ids.shape[1]


def test_scores_are_yes_minus_no_at_the_last_token(loaded_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = to_rank(DOCUMENTS, 2)
    assert [(text.query, text.document) for text in texts] == [
        (asked.question, document.text) for asked in DOCUMENTS[:2] for document in DOCUMENTS
    ]
    with pytest.raises(InputError, match="begin with the same token"):  # a blank, in a tokenizer of bytes
        list(measure_texts(loaded_tiny, texts, METHODS, 300))
    monkeypatch.setattr("deltahalt.lab.evaluation.readout.measure.YES", "y")
    monkeypatch.setattr("deltahalt.lab.evaluation.readout.measure.NO", "n")
    yes, no = (loaded_tiny.tokenizer(word, add_special_tokens=False).input_ids[0] for word in "yn")
    full, own = list(measure_texts(loaded_tiny, texts[:1], METHODS, 300))
    ids, _ = texts[0].ids(loaded_tiny, 300)
    with torch.no_grad():
        expected = [loaded_tiny.model(ids).logits[0, -1]]
        with halting(loaded_tiny.model, POLICY):
            expected.append(loaded_tiny.model(ids, logits_to_keep=1).logits[0, -1])
    for row, logits in zip((full, own), expected, strict=True):
        assert row.vector == pytest.approx((float(logits[yes] - logits[no]),), abs=1e-5)


def test_what_a_file_has_is_not_measured_again(
    loaded_tiny: LoadedModel, tmp_path: Path, rows: list[EmbedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, rows[:3])
    again = list(measure_texts(loaded_tiny, to_embed(DOCUMENTS), METHODS, 200, file))
    assert [replace(row, seconds=0) for row in again] == [replace(row, seconds=0) for row in rows]
    assert read_rows(file, EmbedRow) == again
    monkeypatch.setattr("deltahalt.lab.evaluation.readout.measure.applying", lambda *_: pytest.fail("measured"))
    assert list(measure_texts(loaded_tiny, to_embed(DOCUMENTS), METHODS, 200, file)) == again


def test_rankings_are_compared_with_the_full_models() -> None:
    full = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert (ndcg(full, full), kendall(full, full), overlap(full, full, 2)) == (1, 1, 1)
    assert (kendall(full, -full), overlap(full, -full, 2)) == (-1, 0)
    swapped = torch.tensor([3.0, 4.0, 2.0, 1.0])
    assert kendall(full, swapped) == pytest.approx(4 / 6)
    best = 2 / math.log2(2) + 1 / math.log2(3)
    assert ndcg(full, swapped, 2) == pytest.approx((1 / math.log2(2) + 2 / math.log2(3)) / best)
    assert ndcg(full, -full, 2) == 0


def of(policy: str, document: int, *vector: float, seconds: float = 1.0, query: str = "") -> EmbedRow:
    names = ("dtype", "attention", "machine", "deltahalt", "transformers", "torch", "model")
    about = {"sample": f"{document} {query}", "document": f"{document}", "query": query, "ending": "", "tokens": 9}
    return EmbedRow(policy=policy, vector=vector, seconds=seconds, speedup=1.7, **about, **dict.fromkeys(names, "x"))


def test_a_line_a_policy() -> None:
    corner, edge = (0.6, 0.8), (0.8, 0.6)
    full = [of(FULL, 0, 1, 0), of(FULL, 1, *edge), of(FULL, 2, *corner), of(FULL, 3, 0, 1)]
    own = [of("p", 0, 1, 0, seconds=0.5), of("p", 1, *corner, seconds=0.5), of("p", 2, *edge, seconds=0.5)]
    first, second = summarize([*full, *own, of("few", 0, 1, 0), of("few", 1, 1, 0), of("p", 9, 1, 0)])
    assert (first.policy, first.texts, first.cosine, first.overlap, first.ndcg) == (FULL, 4, pytest.approx(1), 1, 1)
    assert (second.policy, second.texts, second.per_second, second.gain) == ("p", 3, 2, 2)
    assert second.cosine == pytest.approx((1 + 0.96 + 0.96) / 3)
    assert second.apart == pytest.approx((0.8 + 0.6 + 0.96) / 3)
    assert second.agreement == pytest.approx(1 / 3)
    table = markdown([*full, *own])
    assert "| `p` | 3 | 9 | 0.9733 | 100.0 % |" in table
    assert "| 2.00x | 1.70x |" in table


def test_queries_have_a_table_of_their_own() -> None:
    scores = {FULL: (3.0, 2.0, 1.0), "p": (3.0, 1.0, 2.0)}
    rows = [
        of(policy, document, score, query=query)
        for query in ("a", "b")
        for policy, own in scores.items()
        for document, score in enumerate(own)
    ]
    full, own = summarize(rows)
    assert (full.texts, full.agreement, full.cosine, full.ending) == (2, 1, None, None)
    assert own.agreement == pytest.approx(1 / 3)
    assert "| `p` | 2 | 9 | 0.333 |" in markdown(rows)


def test_the_command_measures_the_users_texts_and_report_shows_them(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "texts", tmp_path / "rows.jsonl"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"Text {number} says this again. " * 60)
    options = ["--model", str(tiny_folder), "--documents", "3", "--tokens", "300", "--ending", "", "--rows", str(file)]
    assert deltahalt("embed", *options, "--data", str(folder), "--policies", POLICY) == 0
    assert "cosine" in capsys.readouterr().out
    rows = read_rows(file, EmbedRow)
    assert [(row.policy, row.tokens, row.ending) for row in rows] == [("dense", 300, ""), (POLICY, 300, "")] * 3
    assert deltahalt("report", str(file)) == 0
    assert capsys.readouterr().out.strip() == markdown(rows)
    assert deltahalt("embed", *options, "--data", str(folder), "--policies", POLICY, "--documents", "4") == 2
    assert "ask for 3 or fewer" in capsys.readouterr().err
