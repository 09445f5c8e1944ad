"""Turn public long-context benchmarks, in their own file layouts, into samples for `deltahalt sweep`.

usage: long_context_samples.py FOLDER OUT.jsonl

FOLDER holds essays/*.txt (any prose), longbench/multi_news.jsonl, ruler/niah_multikey_3_4096.jsonl,
kv-retrieval/kv-retrieval-75_keys.jsonl.gz (lost-in-the-middle) and loogle/*.jsonl. The same folder gives the same
samples.
"""

import ast
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

CITIES = ["Lisbon", "Oslo", "Quito", "Hanoi", "Tunis", "Perth", "Turin", "Leeds"]
LONGEST = 44_000  # characters of a document

Row = dict[str, Any]


def needles(folder: Path, draw: random.Random) -> list[Row]:
    """One or four numbers hidden in essays, at 9,000 to 36,000 characters and several depths."""
    essays = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("essays/*.txt"))]
    return [
        _needle(essays, draw, characters, keys, depth)
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
    return {"task": "needle", "prompt": f"{text}\n\n{question}", "answer": f" {numbers[0]}", "lead": lead}


def multi_news(folder: Path, draw: random.Random) -> list[Row]:
    """Summaries of several articles (LongBench), with LongBench's own instruction in spirit."""
    ask = "You are given several news passages. Write a one-page summary of all news.\n\nNews:\n{}\n\n"
    ask += "Now, write a one-page summary of all the news.\n\nSummary:"
    return [
        {"task": "multi_news", "prompt": ask.format(row["context"][:40_000]), "answer": row["answers"][0]}
        for row in _shuffled(folder / "longbench/multi_news.jsonl", draw)[:12]
    ]


def ruler(folder: Path, draw: random.Random) -> list[Row]:
    """Multi-key needles (RULER); what follows the question is the beginning of the answer."""
    rows = []
    for row in _shuffled(folder / "ruler/niah_multikey_3_4096.jsonl", draw)[:8]:
        end = row["input"].rindex("? ") + 1
        prompt, lead = row["input"][:end], row["input"][end:].strip()
        rows.append({"task": "ruler_multikey3", "prompt": prompt, "answer": f" {row['outputs'][0]}", "lead": lead})
    return rows


def key_value(folder: Path, draw: random.Random) -> list[Row]:
    """The value of one key of 75 (lost-in-the-middle)."""
    rows = []
    for row in _shuffled(folder / "kv-retrieval/kv-retrieval-75_keys.jsonl.gz", draw)[:8]:
        key, pairs = row["key"], dict(row["ordered_kv_records"])
        prompt = "Extract the value of the key from the JSON object below.\n\n" + json.dumps(pairs, indent=1)
        lead = f'The value of "{key}" is "'
        rows.append({"task": "kv_retrieval", "prompt": f'{prompt}\n\nKey: "{key}"', "answer": pairs[key], "lead": lead})
    return rows


def loogle(folder: Path, _: random.Random) -> list[Row]:
    """Questions and abstracts (LooGLE), documents cut at LONGEST characters."""
    rows = []
    for file, task in (("shortdep_qa", "loogle_short_qa"), ("longdep_qa", "loogle_long_qa")):
        for row in _read(folder / f"loogle/{file}.jsonl"):
            text = row["input"][:LONGEST]
            for pair in ast.literal_eval(row["qa_pairs"])[:3]:
                inside = task == "loogle_long_qa" or pair.get("S", "")[:60] in text
                if inside and len(row["input"]) <= 120_000:
                    prompt = f"{text}\n\nQuestion: {pair['Q']}\nAnswer:"
                    rows.append({"task": task, "prompt": prompt, "answer": str(pair["A"])})
    for row in _read(folder / "loogle/longdep_summarization.jsonl"):
        prompt = row["input"][:LONGEST] + "\n\nWrite the abstract of the article above.\nAbstract:"
        rows.append({"task": "loogle_summ", "prompt": prompt, "answer": row["output"]})
    return rows


def _shuffled(path: Path, draw: random.Random) -> list[Row]:
    rows = _read(path)
    draw.shuffle(rows)
    return rows


def _read(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    """Write the samples, in a drawn order."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    draw = random.Random(7)
    rows = [row for make in (needles, multi_news, ruler, key_value, loogle) for row in make(folder, draw)]
    draw.shuffle(rows)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
