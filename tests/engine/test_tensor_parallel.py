"""Tensor parallelism of transformers: two processes keep the same tokens as one, and answer the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import UnsupportedError
from deltahalt.host.ranks import of_all_ranks
from helpers import two_ranks
from helpers.tiny import tiny

SCRIPT = Path(two_ranks.__file__)
TOLERANCE = 1e-5
GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=GPUS)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found, by policy."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny("qwen2").save_pretrained(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if request.param == "cpu" else {}
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | hidden | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ran = subprocess.run(
        [*command, str(SCRIPT), str(folder), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_both_ranks_find_the_same(found: list[dict[str, Any]]) -> None:
    assert found[0] == found[1]
    assert all(one["kept"] for one in found[0]["bfloat16"])


@pytest.mark.parametrize("policy", [*two_ranks.POLICIES, "gemfilter"])
def test_two_ranks_answer_as_one(policy: str, found: list[dict[str, Any]]) -> None:
    alone, spread = found[0][policy]["alone"], found[0][policy]["spread"]
    assert spread["kept"] == alone["kept"]
    assert spread["tokens"] == alone["tokens"]
    assert torch.allclose(torch.tensor(spread["logits"]), torch.tensor(alone["logits"]), atol=TOLERANCE)


def test_graphs_of_spread_layers_are_refused(found: list[dict[str, Any]]) -> None:
    assert "layers are spread over several processes" in found[0]["refused"]


def test_heads_that_are_spread_in_another_way_are_refused() -> None:
    layer = tiny("llama").model.layers[0]
    heads = torch.zeros(2, 5, 16)
    assert of_all_ranks(heads, layer, 2) is heads
    with pytest.raises(UnsupportedError, match=r"hold 2 of 4 heads.*load the model with tp_plan='auto'"):
        of_all_ranks(heads, layer, 4)
