"""Turn public long-context benchmarks, in their own file layouts, into samples for `deltahalt sweep`.

usage: long_context_samples.py FOLDER OUT.jsonl [CHARACTERS]

FOLDER holds essays/*.txt (any prose), longbench/multi_news.jsonl, ruler/niah_multikey_3_4096.jsonl,
kv-retrieval/kv-retrieval-75_keys.jsonl.gz (lost-in-the-middle) and loogle/*.jsonl. CHARACTERS: where documents
are cut, 44000 if not given. The same folder and length give the same samples.
"""

import ast
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

LONGEST = 44_000  # characters of a document
BEFORE_NEWS = "You are given several news passages. Write a one-page summary of all news.\n\nNews:\n"
NEWS = "Now, write a one-page summary of all the news.\n\nSummary:"
ABSTRACT = "Write the abstract of the article above.\nAbstract:"
CITIES = ["Lisbon", "Oslo", "Quito", "Hanoi", "Tunis", "Perth", "Turin", "Leeds"]

Row = dict[str, Any]


def needles(folder: Path, draw: random.Random, longest: int) -> list[Row]:
    """One or four numbers hidden in essays, at 9,000 to 36,000 characters and several depths."""
    essays = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("essays/*.txt"))]
    return [
        _needle(essays, draw, min(characters, longest), keys, depth)
        for characters in (9_000, 20_000, 36_000)
        for keys in (1, 4)
        for depth in (0.1, 0.3, 0.5, 0.7, 0.9)[: 4 if characters > 30_000 else 5]
    ]


def _needle(essays: list[str], draw: random.Random, characters: int, keys: int, depth: float) -> Row:
    draw.shuffle(essays)
    text = "\n\n".join(essays)[:characters]
    cities = draw.sample(CITIES, keys)
    numbers = [str(draw.randrange(10_000, 99_999)) for _ in cities]
    depths = [depth, *(draw.random() for _ in cities[1:])]
    for at, city, number in sorted(zip(depths, cities, numbers, strict=True), reverse=True):
        place = text.rfind(". ", 0, int(len(text) * at)) + 2
        text = f"{text[:place]}The special magic number for {city} is {number}. {text[place:]}"
    question = f"What is the special magic number for {cities[0]} mentioned in the text above?"
    lead = f"The special magic number for {cities[0]} is"
    return {"task": "needle", "prompt": text, "answer": f" {numbers[0]}", "lead": lead, "question": question}


def multi_news(folder: Path, draw: random.Random, longest: int) -> list[Row]:
    """Summaries of several articles (LongBench), with LongBench's own instruction in spirit."""
    return [
        {
            "task": "multi_news",
            "prompt": BEFORE_NEWS + row["context"][:longest],
            "answer": row["answers"][0],
            "question": NEWS,
        }
        for row in _shuffled(folder / "longbench/multi_news.jsonl", draw)[:24]
    ]


def ruler(folder: Path, draw: random.Random, _: int) -> list[Row]:
    """Multi-key needles (RULER); what follows the question is the beginning of the answer."""
    rows = []
    for row in _shuffled(folder / "ruler/niah_multikey_3_4096.jsonl", draw)[:12]:
        end = row["input"].rindex("? ") + 1
        text, _, question = row["input"][:end].rpartition("\n")
        answer, lead = f" {row['outputs'][0]}", row["input"][end:].strip()
        rows.append(
            {"task": "ruler_multikey3", "prompt": text, "answer": answer, "lead": lead, "question": question.strip()}
        )
    return rows


def key_value(folder: Path, draw: random.Random, _: int) -> list[Row]:
    """The value of one key of 75 (lost-in-the-middle)."""
    rows = []
    for row in _shuffled(folder / "kv-retrieval/kv-retrieval-75_keys.jsonl.gz", draw)[:12]:
        key, pairs = row["key"], dict(row["ordered_kv_records"])
        text = "Extract the value of the key from the JSON object below.\n\n" + json.dumps(pairs, indent=1)
        lead, question = f'The value of "{key}" is "', f'Key: "{key}"'
        rows.append({"task": "kv_retrieval", "prompt": text, "answer": pairs[key], "lead": lead, "question": question})
    return rows


def loogle(folder: Path, _: random.Random, longest: int) -> list[Row]:
    """Questions and abstracts (LooGLE), documents cut at `longest` characters."""
    rows = []
    for file, task in (("shortdep_qa", "loogle_short_qa"), ("longdep_qa", "loogle_long_qa")):
        for row in read_rows(folder / f"loogle/{file}.jsonl"):
            text = row["input"][:longest]
            for pair in ast.literal_eval(row["qa_pairs"]):
                inside = task == "loogle_long_qa" or pair.get("S", "")[:60] in text
                if inside and len(row["input"]) <= 120_000:
                    answer, question = str(pair["A"]), loogle_question(pair)
                    rows.append({"task": task, "prompt": text, "answer": answer, "question": question})
    return rows + [
        {"task": "loogle_summ", "prompt": row["input"][:longest], "answer": row["output"], "question": ABSTRACT}
        for row in read_rows(folder / "loogle/longdep_summarization.jsonl")
    ]


def loogle_question(pair: Row) -> str:
    """How one of a document's question-answer pairs is asked."""
    return f"Question: {pair['Q']}\nAnswer:"


def _shuffled(path: Path, draw: random.Random) -> list[Row]:
    rows = read_rows(path)
    draw.shuffle(rows)
    return rows


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file, compressed or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def samples(folder: Path, longest: int = LONGEST) -> list[Row]:
    """All samples, in a drawn order."""
    draw = random.Random(7)
    rows = [row for make in (needles, multi_news, ruler, key_value, loogle) for row in make(folder, draw, longest)]
    draw.shuffle(rows)
    return rows


def write_rows(rows: list[Row], out: Path) -> None:
    """Write rows as JSONL."""
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the samples."""
    longest = int(sys.argv[3]) if len(sys.argv) > 3 else LONGEST
    write_rows(samples(Path(sys.argv[1]), longest), Path(sys.argv[2]))


if __name__ == "__main__":
    if len(sys.argv) not in {3, 4}:
        sys.exit(__doc__)
    main()
