"""The example in docs/turns.md runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltahalt import halting
from deltahalt.host.compat import CACHE

PAGE = (Path(__file__).parents[2] / "docs/turns.md").read_text(encoding="utf-8")


def test_the_example_of_a_cached_prefix_runs(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.txt").write_text("It was signed in the spring, by the harbour master. " * 12)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "halting": halting}
    exec(compile(example.replace("cache=", f"{CACHE}="), "docs/turns.md", "exec"), names)
    report, rules = names["halted"].report, names["rules"].input_ids.shape[1]
    document = names["document"]
    assert report.stages
    assert report.prompts == (document.input_ids.shape[1],)
    assert set(report.cached) == {rules}
    assert names["prefix"].get_seq_length() == rules
