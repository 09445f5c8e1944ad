"""recipes/real_prompts.py on clones that hold a few samples."""

import json
import subprocess
import sys
from pathlib import Path

from deltahalt.lab.evaluation.samples import read_samples

RECIPE = Path(__file__).parents[2] / "recipes" / "real_prompts.py"
DOCUMENTS = 8


def test_questions_stand_at_either_end_of_the_held_out_half(tmp_path: Path) -> None:
    leval, mini = tmp_path / "leval", tmp_path / "mini"
    (leval / "LEval-data" / "Open-ended-tasks").mkdir(parents=True)
    (mini / "pred_data" / "example").mkdir(parents=True)
    lines = [
        {"input": f"Document {n}.", "instructions": [f"Q{n}a?", f"Q{n}b?"], "outputs": [f"A{n}a", f"A{n}b"]}
        for n in range(DOCUMENTS)
    ]
    file = leval / "LEval-data" / "Open-ended-tasks" / "exam.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    golds = ({"answers": ["first", "second"]}, "['one', 'two']", "plain", ["listed"])
    given = {str(n): {"origin_prompt": f"Prompt {n}", "gold": gold} for n, gold in enumerate(golds)}
    (mini / "pred_data" / "example" / "MiniLongBench_code.json").write_text(json.dumps(given))
    outs = [tmp_path / f"{run}.jsonl" for run in range(2)]
    for out in outs:
        subprocess.run([sys.executable, RECIPE, leval, mini, out], check=True)
    assert outs[0].read_text() == outs[1].read_text()
    samples = read_samples(outs[0])
    exams = [sample for sample in samples if sample.task.startswith("exam/")]
    assert len(exams) == DOCUMENTS  # two questions about every other document
    assert all(sample.lead == "" for sample in samples)
    for sample in exams:
        asked = sample.answer.replace("A", "Q") + "?" if sample.answer else ""
        place = sample.task.partition("/")[2]
        if place == "first":
            assert (sample.prompt.startswith(asked), sample.question) == (True, "")
        else:
            assert sample.question.startswith(asked)
            assert (sample.question == asked) == (place == "last")
    assert len(samples) - len(exams) == len(golds) // 2
    assert {sample.answer for sample in samples} - {sample.answer for sample in exams} <= {
        "first",
        "one",
        "plain",
        "listed",
    }
