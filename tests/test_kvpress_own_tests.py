"""kvpress's own tests, of a checkout that KVPRESS_SOURCE names, with our presses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny

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


@pytest.mark.skipif("KVPRESS_SOURCE" not in os.environ, reason="KVPRESS_SOURCE names no checkout of kvpress's tests")
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
