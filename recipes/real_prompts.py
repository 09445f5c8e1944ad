"""Turn L-Eval and MiniLongBench into samples for `deltahalt sweep`: real documents, questions at either end.

usage: real_prompts.py LEVAL MINILONGBENCH OUT.jsonl

LEVAL: a clone of github.com/OpenLMLab/LEval. MINILONGBENCH: a clone of github.com/MilkThink-Lab/MiniLongBench. A
question of L-Eval stands after its document, before it, or after it and before instructions on how to answer.
MiniLongBench's prompts stay as they are. Nothing is put into the model's mouth. Documents with even numbers served
development; OUT gets those with odd numbers. The same clones give the same samples.
"""

import ast
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 34_000  # characters of an L-Eval document: longer ones are cut for summaries, and left out for questions
LONGEST_PROMPT = 40_000  # characters of a MiniLongBench prompt
DOCUMENTS, PROMPTS = 8, 10  # of each task, in both halves
PLACES = ("last", "last", "first", "tail")  # of the question; drawn, so that half of them are last
BRIEFLY = (
    "Answer briefly and in a friendly tone. Do not mention where you found it, do not repeat the question, avoid lists "
    "and headings, write plain sentences that a person without any background could follow, and stay below fifty words "
    "in all."
)
IN_STEPS = "Think about it step by step and then give your answer."
IN_STYLE = (
    "Write in British English. Use short sentences, no bullet points, no emphasis, and no phrases such as 'according "
    "to the text'. If something is unclear, say what is unclear rather than guessing, and close with the answer itself "
    "on the last line."
)
TAILS = (BRIEFLY, IN_STEPS, IN_STYLE)
LEFT_OUT = {"codeU", "narrative_qa", "topic_retrieval_longchat"}  # too long, or too large for some copies of L-Eval

Row = dict[str, str]


def leval(folder: Path, draw: random.Random) -> Iterator[tuple[int, Row]]:
    """Samples of L-Eval, each with the number of its document."""
    for file in sorted(folder.glob("LEval-data/*/*.jsonl"), key=lambda file: file.as_posix()):
        task = file.stem
        if task in LEFT_OUT:
            continue
        documents = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        documents = [one for one in documents if "summ" in task or len(one["input"]) <= LONGEST]
        draw.shuffle(documents)
        for number, one in enumerate(documents[:DOCUMENTS]):
            pairs = list(zip(one["instructions"], one["outputs"], strict=False))
            for question, answer in draw.sample(pairs, min(2, len(pairs))):
                place = draw.choice(PLACES)
                if str(answer).strip():
                    yield number, _asked(task, one["input"][:LONGEST], question, str(answer), place, draw)


def _asked(task: str, text: str, question: str, answer: str, place: str, draw: random.Random) -> Row:
    row = {"task": f"{task}/{place}", "prompt": text, "question": question, "answer": answer}
    if place == "first":
        return row | {"prompt": f"{question}\n\n{text}", "question": ""}
    return row if place == "last" else row | {"question": f"{question}\n\n{draw.choice(TAILS)}"}


def mini_longbench(folder: Path, draw: random.Random) -> Iterator[tuple[int, Row]]:
    """Samples of MiniLongBench, each with its number."""
    for file in sorted(folder.glob("pred_data/example/MiniLongBench_*.json"), key=lambda file: file.as_posix()):
        given = json.loads(file.read_text(encoding="utf-8")).values()
        samples = [one for one in given if len(one["origin_prompt"]) <= LONGEST_PROMPT]
        draw.shuffle(samples)
        task = file.stem.removeprefix("MiniLongBench_")
        for number, one in enumerate(samples[:PROMPTS]):
            answer = _first_answer(one["gold"])
            if answer.strip():
                yield number, {"task": f"lb-{task}", "prompt": one["origin_prompt"], "question": "", "answer": answer}


def _first_answer(gold: Any) -> str:
    answers = gold["answers"] if isinstance(gold, dict) else gold
    if isinstance(answers, str):
        try:
            answers = ast.literal_eval(answers)
        except (SyntaxError, ValueError):
            answers = [answers]
    return str(answers[0] if isinstance(answers, list) else answers)


def main() -> None:
    """Write the samples."""
    first, second, out = map(Path, sys.argv[1:])
    draw = random.Random(5)
    numbered = [*leval(first, draw), *mini_longbench(second, draw)]
    rows = [row for number, row in numbered if number % 2]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main()
