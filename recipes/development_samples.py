"""Samples to try policies on, apart from those of long_context_samples.py, which are to report on.

usage: development_samples.py FOLDER OUT.jsonl

FOLDER is the same. News that were not drawn there; LooGLE's questions and abstracts with later parts of the documents,
whose questions were not asked there; and summaries that the full model writes itself, of news and of documents'
middles. The same folder gives the same samples.
"""

import ast
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from long_context_samples import (
    ABSTRACT,
    BEFORE_NEWS,
    LONGEST,
    NEWS,
    Row,
    loogle_question,
    read_rows,
    samples,
    write_rows,
)

KINDS = ("shortdep_qa", "longdep_qa", "longdep_summarization", "shortdep_cloze")
QUESTIONS = 8  # of one part of one document
PARTS = 4
SHORTEST = 15_000  # characters of a part
MIDDLE = slice(10_000, 40_000)


def news(folder: Path, draw: random.Random, reported: list[Row]) -> list[Row]:
    """36 summaries of news by their authors, and 8 by the full model."""
    taken = {row["prompt"] for row in reported}
    rows = read_rows(folder / "longbench/multi_news.jsonl")
    rows = [row for row in rows if BEFORE_NEWS + row["context"][:LONGEST] not in taken and len(row["context"]) > 6000]
    draw.shuffle(rows)
    shared = [{"prompt": BEFORE_NEWS + row["context"][:LONGEST], "question": NEWS} for row in rows[:44]]
    theirs = [
        {"task": "multi_news", "answer": row["answers"][0], **own} for row, own in zip(rows[:36], shared, strict=False)
    ]
    return theirs + [{"task": "own_news", "answer": None, **own} for own in shared[36:]]


def questions(folder: Path, draw: random.Random, reported: list[Row]) -> Iterator[Row]:
    """Short questions that a part of a document answers."""
    asked = {row["question"] for row in reported}
    for row in read_rows(folder / "loogle/shortdep_qa.jsonl"):
        for text in _parts(row["input"], range(PARTS)):
            found = [
                {"task": "loogle_short_qa", "prompt": text, "answer": str(pair["A"]), "question": question}
                for pair in ast.literal_eval(row["qa_pairs"])
                if (question := loogle_question(pair)) not in asked and pair.get("S") and pair["S"][:60] in text
            ]
            draw.shuffle(found)
            yield from found[:QUESTIONS]


def summaries(folder: Path) -> Iterator[Row]:
    """Abstracts asked of the second and third part of a paper, and of documents' middles by the full model."""
    for row in read_rows(folder / "loogle/longdep_summarization.jsonl"):
        for text in _parts(row["input"], range(1, 3)):
            yield {"task": "abstract", "prompt": text, "answer": row["output"], "question": ABSTRACT}
    files = [folder / f"loogle/{kind}.jsonl" for kind in KINDS]
    middles = (row["input"][MIDDLE] for file in files for row in read_rows(file)[:3])
    for text in dict.fromkeys(middles):  # some documents are in two files
        yield {"task": "own_summary", "prompt": text, "answer": None, "question": ABSTRACT}


def _parts(text: str, which: range) -> list[str]:
    """The parts of a document, each as long as a prompt, that are not too short."""
    return [part for at in which if len(part := text[at * LONGEST : (at + 1) * LONGEST]) >= SHORTEST]


def main() -> None:
    """Write the samples, in a drawn order."""
    folder, reported = Path(sys.argv[1]), samples(Path(sys.argv[1]))
    draw = random.Random(11)
    rows = [*news(folder, draw, reported), *questions(folder, draw, reported), *summaries(folder)]
    draw.shuffle(rows)
    write_rows(rows, Path(sys.argv[2]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
