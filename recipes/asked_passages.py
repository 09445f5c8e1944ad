"""Questions about one passage of a long text, in other words than the passage's, by a model itself.

usage: asked_passages.py FOLDER MODEL OUT.jsonl

FOLDER is that of long_context_samples.py. Essays after each other, news that it does not use, and later parts of
LooGLE's documents; a model that is shown a passage alone writes a question that it answers, and the short answer. What
a policy halts can so be judged on many questions that do not repeat what they ask for. The model's number format and
machine decide its words; the passages are always the same.
"""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from long_context_samples import BEFORE_NEWS, LONGEST, Row, read_rows, samples, write_rows

from deltahalt.loading.models import LoadedModel, load

ASK = """Here is a passage from a longer text.

{passage}

Write one specific question that only this passage answers. Do not use the passage's own words where others say the \
same, and do not mention the passage. Then give the short answer. Use this form:
Question: ...
Answer: ..."""
ANSWERED = re.compile(r"Question:\s*(.+?)\s*\n+\s*Answer:\s*(.+?)\s*(?:\n|$)")
TEXTS = 60  # of essays, and of news
LENGTHS = (20_000, 30_000, 42_000)  # characters of essays after each other
PASSAGE, LONGEST_PASSAGE = 700, 1_500  # characters, to the end of a sentence
AT_ONCE = 12
NEW_TOKENS = 70


class Passage(NamedTuple):
    """A passage of a text: its kind, the text, and where the passage begins and ends in it."""

    kind: str
    text: str
    begin: int
    end: int


def texts(folder: Path, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Kinds of text, and texts."""
    essays = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("essays/*.txt"))]
    for _ in range(TEXTS):
        draw.shuffle(essays)
        length = draw.choice(LENGTHS)
        yield "essays", "\n\n".join(essays)[:length]
    taken = {row["prompt"] for row in samples(folder)}
    rows = read_rows(folder / "longbench/multi_news.jsonl")
    news = [row["context"] for row in rows if BEFORE_NEWS + row["context"][:LONGEST] not in taken]
    news = [text for text in news if len(text) > 9_000]
    draw.shuffle(news)
    yield from (("news", text[:LONGEST]) for text in news[:TEXTS])
    parts = [
        part
        for kind in ("shortdep_qa", "longdep_qa", "shortdep_cloze")
        for row in read_rows(folder / f"loogle/{kind}.jsonl")
        for at in range(1, 4)
        if len(part := row["input"][at * LONGEST : (at + 1) * LONGEST]) > 12_000
    ]
    yield from (("loogle", part) for part in list(dict.fromkeys(parts)) * 2)


def passages(folder: Path) -> Iterator[Passage]:
    """A passage of each text, neither at its beginning nor at its end."""
    draw = random.Random(5)
    for kind, text in list(texts(folder, draw)):
        begin = text.find(". ", draw.randrange(1_500, len(text) - 2_500)) + 2
        end = text.find(". ", begin + PASSAGE) + 1
        if begin >= 2 and 0 < end - begin <= LONGEST_PASSAGE:
            yield Passage(kind, text, begin, end)


@torch.inference_mode()
def asked(loaded: LoadedModel, some: list[Passage]) -> Iterator[Row]:
    """A sample for each passage of which the model writes a question and an answer."""
    model: Any = loaded.model
    turns = [[{"role": "user", "content": ASK.format(passage=one.text[one.begin : one.end].strip())}] for one in some]
    prompts = loaded.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = loaded.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    said = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[:, inputs.input_ids.shape[1] :]
    for one, words in zip(some, loaded.tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
        if found := ANSWERED.search(words):
            question = f"Question: {found[1]}\nAnswer:"
            yield {"task": f"asked_{one.kind}", "prompt": one.text, "question": question, "answer": found[2]}


def main() -> None:
    """Write the samples."""
    loaded = load(sys.argv[2], dtype="bfloat16")
    every = list(passages(Path(sys.argv[1])))
    groups = [every[at : at + AT_ONCE] for at in range(0, len(every), AT_ONCE)]
    write_rows([row for some in groups for row in asked(loaded, some)], Path(sys.argv[3]))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main()
