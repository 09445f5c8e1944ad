"""The two parts of a decoder, compiled by vLLM, give the tokens of the core engine.

vLLM traces both before the first prompt. Here what it traced runs as it is: compiling it would take minutes.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.vllm_engine import CHUNKS, HALF, LENGTHS, V2, config, engine, expected, saved, served, token_ids
from helpers.vllm_replay import runner

TRACED: dict[str, Any] = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}}

pytestmark = pytest.mark.skipif(
    V2 and not torch.cuda.is_available(), reason="kernels of Triton's interpreter cannot be traced"
)


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (f"dash:{HALF},relative=true", {}),
        (f"both-ends:{HALF},boundary=attention", CHUNKS),
        (f"window-attention:{HALF},window=16,heads=max", CHUNKS),
        ("dash-layer:start=0,pruning_ratio=0.5,keep_first=8,keep_last=16", {}),
    ],
)
@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_compiled_parts_give_the_tokens_of_the_core_engine(
    tmp_path: Path, variant: str, policy: str, settings: dict[str, Any]
) -> None:
    model, ids = saved(tmp_path, variant), token_ids(*LENGTHS)
    with engine(tmp_path, policy, **TRACED | settings) as llm:
        parts = runner(llm).model.parts
        assert [part.do_not_compile for part in parts] == [False, False]
        assert [part.compiled for part in parts] == [True, True]  # before the first prompt
        assert served(llm, ids) == expected(model, ids, policy)


def test_what_is_compiled_is_kept_for_the_policy_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM finds what it compiled earlier by its configuration, and `auto` finds a policy by the weights."""
    saved(tmp_path)
    found = f"dash:{HALF}"
    monkeypatch.setattr("deltahalt.integrations.vllm.options.resolve", lambda *_: SimpleNamespace(text=found))
    with engine(tmp_path, "auto") as llm:
        compiled_for = llm.llm_engine.vllm_config.additional_config
    assert compiled_for["deltahalt"] == config(found, min_prompt_tokens=0)["deltahalt"]
