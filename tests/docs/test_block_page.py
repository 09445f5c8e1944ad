"""The example of streaming in docs/block.md runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltahalt import halting

PAGE = (Path(__file__).parents[2] / "docs/block.md").read_text(encoding="utf-8")


def test_the_streaming_example_runs(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(from threading.*?)```", PAGE, re.DOTALL)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    inputs = tokenizer("It was signed in the spring, by the harbour master. " * 12, return_tensors="pt")
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "inputs": inputs, "halting": halting}
    exec(compile(example, "docs/block.md", "exec"), names)
    assert capsys.readouterr().out
    assert names["halted"].report.stages
