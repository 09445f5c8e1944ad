"""Put MiniLongBench's samples of the paper's thirteen tasks into LongBench's own layout, for `deltahalt eval --data`.

usage: mini_longbench.py REPOSITORY FOLDER

MiniLongBench (ACL 2025) is 237 of LongBench's samples. REPOSITORY is a clone of github.com/MilkThink-Lab/MiniLongBench,
which holds them as whole prompts, in the answers that it gives as an example. Here each is taken apart again into
document and question, in FOLDER/longbench/<task>.jsonl. The prompts of repobench-p do not tell the file that is
completed from those before it: all of it is the document.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

ABSTRACT = r"The following is an abstract\.\n\n(?P<input>.*)\n\nPlease enter .*"
ASKED = r".*?\n\nQuestion: (?P<input>.*)\nAnswer:\s*"
PASSAGES = rf".*?passages\.\n(?P<context>.*)\n\nAnswer the question{ASKED}"
CODE = r"[^\n]*\n(?P<context>.*)Next line of code:\s*"
# What stands around document and question in each task's prompt.
FRAMES = {
    "qasper": PASSAGES,
    "multifieldqa_en": rf"[^\n]*\n\n(?P<context>.*)\n\nNow, answer{ASKED}",
    "hotpotqa": PASSAGES,
    "2wikimqa": PASSAGES,
    "gov_report": r".*?\nReport:\n(?P<context>.*)\n\nNow, write .*",
    "multi_news": r".*?\nNews:\n(?P<context>.*)\n\nNow, write .*",
    "trec": r"[^\n]*\n\n(?P<context>.*)\n(?P<input>Question: .*)",
    "triviaqa": r"[^\n]*\n\n(?P<context>.*)\n\n(?P<input>Passage:\n.*)",
    "samsum": r"[^\n]*\n\n(?P<context>.*)\n\n(?P<input>Dialogue: .*)",
    "passage_count": r"[^\n]*\n\n(?P<context>.*)\n\nPlease enter .*",
    "passage_retrieval_en": rf"[^\n]*\n\n(?P<context>.*)\n\n{ABSTRACT}",
    "lcc": CODE,
    "repobench-p": CODE,
}


def samples(task: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of a task in LongBench's fields. Raises ValueError for a prompt that is not the task's."""
    rows = []
    for number, sample in given.items():
        parts = re.fullmatch(FRAMES[task], sample["origin_prompt"], re.DOTALL)
        if parts is None:
            raise ValueError(f"{task}, sample {number}: not the prompt that LongBench makes")
        gold = sample["gold"] if isinstance(sample["gold"], dict) else {"answers": sample["gold"], "all_classes": None}
        rows.append({"input": "", **parts.groupdict(), **gold, "dataset": task, "_id": f"{task}-{number}"})
    return rows


def main() -> None:
    """Write a file for each task."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("repository", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    prompts, folder = given.repository / "pred_data" / "example", given.folder / "longbench"
    if not prompts.is_dir():
        parser.error(f"there is no folder {prompts}: give a clone of github.com/MilkThink-Lab/MiniLongBench")
    folder.mkdir(parents=True, exist_ok=True)
    for task in FRAMES:
        source = prompts / f"MiniLongBench_{task}.json"
        rows = samples(task, json.loads(source.read_text(encoding="utf-8")))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
