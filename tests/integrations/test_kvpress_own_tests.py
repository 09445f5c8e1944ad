"""kvpress's own tests and evaluation, of a checkout that KVPRESS_SOURCE names, with our presses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import tiny

pytest.importorskip("kvpress", reason="kvpress has an environment of its own: make test-kvpress")

PLUGIN = """
from functools import partial

from tests import default_presses, test_pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from deltahalt.integrations.kvpress import DeltaLayerPress, DeltaPress, HaltingPipeline

ends = {"keep_first_n": 4, "keep_last_n": 4}
default_presses.default_presses[:] = [
    {"cls": kind, "kwargs": [ends | {"compression_ratio": 0.2}, ends | {"compression_ratio": 0.8}]}
    for kind in (DeltaPress, DeltaLayerPress)
]
test_pipeline.ExpectedAttentionPress = partial(DeltaPress, **ends)
test_pipeline.KVPressTextGenerationPipeline = HaltingPipeline
PIPELINE_REGISTRY.supported_tasks["kv-press-text-generation"]["impl"] = HaltingPipeline
"""
OWN_TESTS = (
    "tests/presses/test_presses.py::test_presses_run",
    "tests/test_decoding_compression.py::test_all_presses_work_with_decoding_press",
    "tests/test_pipeline.py::test_pipeline_with_cache",
    "tests/test_pipeline.py::test_pipeline_context_cache_is_invariant",
)


# docs/kvpress.md's lines for a checkout: file, the line they stand behind, the line itself.
EVALUATION = (
    ("registry", "from kvpress import (", "from deltahalt.integrations.kvpress import DeltaLayerPress, DeltaPress"),
    ("registry", "PRESS_REGISTRY = {", '    "delta_press": DeltaPress(),'),
    ("registry", "PRESS_REGISTRY = {", '    "delta_layer_press": DeltaLayerPress(),'),
    ("evaluate", "from kvpress import (", "from deltahalt.integrations.kvpress import HaltingPipeline"),
    ("evaluate", "        pipeline_kwargs = {", '            "pipeline_class": HaltingPipeline,'),
)
needs_source = pytest.mark.skipif(
    "KVPRESS_SOURCE" not in os.environ, reason="KVPRESS_SOURCE names no checkout of kvpress's tests and evaluation"
)


@needs_source
def test_kvpress_own_tests_pass_with_our_presses(tokenizer: Any, tmp_path: Path) -> None:
    """Those about any press and its pipeline, but for `ComposedPress`; their model on the hub is a tiny one here."""
    shutil.copytree(Path(os.environ["KVPRESS_SOURCE"]) / "tests", tmp_path / "tests")
    (tmp_path / "our_presses.py").write_text(PLUGIN)
    for name in ("MaxJeblick", "maxjeblick"):
        stored = tmp_path / "hub" / f"models--{name}--llama2-0b-unit-test"
        (stored / "refs").mkdir(parents=True)
        (stored / "refs" / "main").write_text("tiny")
        tiny(vocab_size=3072).save_pretrained(stored / "snapshots" / "tiny")
        tokenizer.save_pretrained(stored / "snapshots" / "tiny")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "our_presses", "-k", "not ComposedPress", *OWN_TESTS],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@needs_source
def test_kvpress_evaluation_runs_with_the_lines_in_docs(tokenizer: Any, tmp_path: Path) -> None:
    """Its own loop, prompts and scorer, on a local folder in place of RULER's on the hub."""
    pytest.importorskip("bert_score", reason="kvpress's evaluation needs its extra: pip install 'kvpress[eval]'")
    folder = tmp_path / "evaluation"
    shutil.copytree(Path(os.environ["KVPRESS_SOURCE"]) / "evaluation", folder)
    files = {"registry": folder / "evaluate_registry.py", "evaluate": folder / "evaluate.py"}
    for name, behind, line in EVALUATION:
        text = files[name].read_text()
        assert f"\n{behind}\n" in text
        before = behind.startswith("from")
        files[name].write_text(
            text.replace(f"{behind}\n", f"{line}\n{behind}\n" if before else f"{behind}\n{line}\n", 1)
        )
    registry = files["registry"].read_text()
    files["registry"].write_text(registry.replace('"simonjegou/ruler"', json.dumps(str(tmp_path / "ruler"))))
    sample = {
        "context": "word " * 60,
        "answer_prefix": "It is",
        "answer": ["word"],
        "task": "niah",
        "max_new_tokens": 4,
    }
    (tmp_path / "ruler" / "4096").mkdir(parents=True)
    with (tmp_path / "ruler" / "4096" / "test.jsonl").open("w") as file:
        file.writelines(json.dumps(sample | {"question": question}) + "\n" for question in ("What?", "And then?"))
    tiny(vocab_size=3072).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for press in ("delta_press", "delta_layer_press"):
        command = [sys.executable, "evaluate.py", "--model", str(tmp_path / "model"), "--press_name", press]
        command += ["--compression_ratio", "0.667", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        result = subprocess.run(command, cwd=folder, env=offline, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*/metrics.json"))) == 2
