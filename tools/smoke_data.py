"""Write a few small samples of our own in the layouts of LongBench-E, RULER and the needle task, for `make eval-smoke`.

usage: python -m tools.smoke_data FOLDER

The texts are the standard library's help topics, as in `deltahalt demo`, with facts planted in them: they show that
evaluation works from end to end, and are no benchmark. The same Python writes the same files.
"""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

CHARACTERS = 5_000  # about 1,300 tokens
FACTS = [
    ("The lighthouse of Cork is painted green.", "What colour is the lighthouse of Cork painted?", "green"),
    ("Ada Byron keeps her compass in the kitchen.", "Where does Ada Byron keep her compass?", "in the kitchen"),
    ("The ferry to Oslo leaves on Thursday.", "On which day does the ferry to Oslo leave?", "Thursday"),
]
KEYS = {"harbour": "48213", "orchard": "90577", "violin": "31846"}


def haystacks() -> list[str]:
    """A text for each sample."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return [text[number * CHARACTERS : (number + 1) * CHARACTERS] for number in range(len(FACTS))]


def plant(fact: str, text: str, depth: float) -> str:
    """The text with a fact after the last sentence that ends before the depth."""
    at = text.rfind(". ", 0, int(depth * len(text))) + 2
    return f"{text[:at]}{fact} {text[at:]}"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    folder, texts = parser.parse_args().folder, haystacks()
    questions = [
        {"context": plant(fact, text, 0.5), "input": question, "answers": [answer]}
        for (fact, question, answer), text in zip(FACTS, texts, strict=True)
    ]
    needles = [
        {
            "input": plant(f"One of the special magic numbers for {key} is: {number}.", text, 0.3)
            + f"\nWhat is the special magic number for {key} mentioned in the provided text?",
            "outputs": [number],
            "answer_prefix": f"The special magic number for {key} mentioned in the provided text is",
        }
        for (key, number), text in zip(KEYS.items(), texts, strict=True)
    ]
    write(folder / "longbench" / "multifieldqa_en_e.jsonl", questions)
    write(folder / "ruler" / "niah_single_2_1536.jsonl", needles)
    (folder / "essays").mkdir(parents=True, exist_ok=True)
    (folder / "essays" / "topics.txt").write_text("".join(texts), encoding="utf-8")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A JSONL file of the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
