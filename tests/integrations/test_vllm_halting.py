"""Inside vLLM a prompt gets the tokens that the core engine gives it alone, whatever else is in the step."""

from pathlib import Path
from typing import Any

import pytest

from helpers.vllm_engine import (
    CHUNKS,
    HALF,
    LENGTHS,
    V2,
    engine,
    expected,
    preemptions,
    sampling,
    saved,
    scheduler,
    served,
    token_ids,
)

POLICIES = (
    f"both-ends:{HALF}",
    f"both-ends:{HALF},boundary=attention,chunk=16",
    f"max-sim:{HALF},window=16",
    f"dash:{HALF},boundary=attention,relative=true",
    f"dash-layer:{HALF}",
    f"window-attention:{HALF},window=16,heads=max",
    f"window-attention:{HALF},window=8,similar=0.5",
    f"last-token-attention:{HALF},boundary=attention",
    f"key-norm:{HALF},chunk=16",
    f"random:{HALF}",
    "uniform:start=0,keep=40,keep_first=8,keep_last=16",
)
IDS = token_ids(*LENGTHS)


@pytest.mark.parametrize("policy", POLICIES[:2] if V2 else POLICIES)  # a policy does not depend on the runner
def test_every_policy_gives_the_tokens_of_the_core_engine(folder: Path, model: Any, policy: str) -> None:
    full, want = expected(model, IDS, "dense"), expected(model, IDS, policy)
    assert sum(one != other for one, other in zip(full, want, strict=True)) > 3  # so equal tokens say something
    with engine(folder, policy) as llm:
        assert served(llm, IDS) == want
        assert served(llm, IDS[::-1]) == want[::-1]


@pytest.mark.parametrize("variant", ["qwen2"] if V2 else ["qwen2", "qwen3", "mistral"])
def test_every_family_gives_the_tokens_of_the_core_engine(tmp_path: Path, variant: str) -> None:
    model = saved(tmp_path, variant)
    with engine(tmp_path, POLICIES[0]) as llm:
        assert served(llm, IDS) == expected(model, IDS, POLICIES[0])


@pytest.mark.skipif(V2, reason="its processes are new ones, without the Triton that this one has for runner V2")
@pytest.mark.parametrize(("policy", "key_heads"), [(POLICIES[0], 2), (POLICIES[7], 2), (POLICIES[7], 1)])
def test_processes_of_tensor_parallel_give_the_tokens_of_the_core_engine(
    tmp_path: Path, policy: str, key_heads: int
) -> None:
    """Each process computes half of the attention heads; both compute the key head where there is one."""
    model, parallel = saved(tmp_path, num_key_value_heads=key_heads), {"tensor_parallel_size": 2}
    with engine(tmp_path, policy, distributed_executor_backend="mp", **parallel, **CHUNKS) as llm:
        assert served(llm, IDS) == expected(model, IDS, policy)


@pytest.mark.parametrize("policy", [None, "off", "dash:start=1,pruning_ratio=0"])
def test_without_halting_the_tokens_are_vllms_own(folder: Path, model: Any, policy: str | None) -> None:
    with engine(folder, policy) as llm:
        assert served(llm, IDS) == expected(model, IDS, "dense")


def test_short_prompts_stay_whole(folder: Path, model: Any) -> None:
    with engine(folder, POLICIES[0], shortest=120) as llm:
        assert served(llm, IDS) == expected(model, IDS, POLICIES[0], min_prompt_tokens=120)


def test_each_request_has_its_own_ratio(folder: Path, model: Any) -> None:
    options = [None, "off", "pruning_ratio=0.3", "keep=50", "pruning_ratio=1", "keep=1000"]
    policies = [
        POLICIES[0],
        "dense",
        *(f"both-ends:start=1,keep_first=8,keep_last=16,{text}" for text in options[2:]),
    ]
    want = [expected(model, [ids], policy)[0] for ids, policy in zip(IDS, policies, strict=True)]
    with engine(folder, POLICIES[0]) as llm:
        assert served(llm, IDS, options=options) == want


def test_a_preempted_prompt_is_recomputed_to_the_same_tokens(folder: Path, model: Any) -> None:
    ids = token_ids(60, 90, 62, 94)
    with engine(folder, POLICIES[0], num_gpu_blocks_override=22) as llm:
        preempted = preemptions(llm)
        assert served(llm, ids) == expected(model, ids, POLICIES[0])
        assert any(generated for _, generated in preempted)


def test_an_aborted_request_leaves_nothing(folder: Path, model: Any) -> None:
    names = ("first", "second", "third")
    with engine(folder, POLICIES[0]) as llm:
        for name, ids in zip(names, IDS, strict=False):
            llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, sampling(max_tokens=100))
        for _ in range(3):
            llm.llm_engine.step()
        llm.llm_engine.abort_request(list(names))
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        assert scheduler(llm).kv_cache_manager.usage == 0
        assert served(llm, IDS) == expected(model, IDS, POLICIES[0])
