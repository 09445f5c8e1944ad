"""Inside vLLM deep layers have blocks only for the tokens that they hold, so that more requests fit."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from deltahalt import parse_policy
from deltahalt.integrations.vllm.groups import Groups
from deltahalt.integrations.vllm.shared import log
from helpers.vllm_engine import (
    CHUNKS,
    HALF,
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

POLICY = f"both-ends:{HALF}"
BLOCK = 32
KEPT = parse_policy(POLICY).kept(200)  # 94, in 3 blocks
IDS = token_ids(200, 200, 200, 200)


def blocks(llm: Any) -> dict[str, list[int]]:
    """Of each request, the number of blocks that it has in each group of layers; the others of the pool are free."""
    manager = scheduler(llm).kv_cache_manager
    groups = manager.coordinator.single_type_managers
    held: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        for name, own in group.req_to_blocks.items():
            held.setdefault(name.partition("-")[0], [0] * len(groups))[number] = len(own)
    assert len({block.block_id for group in groups for own in group.req_to_blocks.values() for block in own}) == sum(
        map(sum, held.values())
    )
    pool = manager.block_pool
    assert pool.get_num_free_blocks() + sum(map(sum, held.values())) == pool.num_gpu_blocks - 1  # one stays unused
    return held


def started(llm: Any, options: Sequence[str | None], *, ids: Sequence[list[int]] = IDS, count: int = 50) -> None:
    """Start a request with each of these entries `deltahalt`, and names from 0 on."""
    for number, (text, prompt) in enumerate(zip(options, ids, strict=False)):
        params = sampling(extra_args=None if text is None else {"deltahalt": text}, max_tokens=count)
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, params)


def finished(llm: Any) -> None:
    """Run all requests to their ends, after which all blocks are free."""
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    assert blocks(llm) == {}


def test_deep_layers_have_blocks_for_the_tokens_that_they_hold(folder: Path, model: Any) -> None:
    options = [None, "off", "pruning_ratio=0", "prefix=100"]
    with engine(folder, POLICY, shortest=90) as llm:
        for number, text in enumerate(options):
            started(llm, [text], ids=IDS[number:])
            llm.llm_engine.step()
            kept = {None: KEPT, "prefix=100": 100 + parse_policy(POLICY).kept(100)}.get(text, 200)
            assert blocks(llm) == {"0": [7, ceil(kept / BLOCK)]}
            for _ in range(40):
                llm.llm_engine.step()
            assert blocks(llm) == {"0": [8, ceil((kept + 40) / BLOCK)]}
            llm.llm_engine.abort_request(["0"])
            finished(llm)
        started(llm, [None], ids=token_ids(80))  # a short one, which stays whole
        llm.llm_engine.step()
        assert blocks(llm) == {"0": [3, 3]}
        finished(llm)


def test_between_chunks_deep_layers_have_room_for_the_prefix_and_one_token(folder: Path, model: Any) -> None:
    with engine(folder, POLICY, **CHUNKS) as llm:
        for text, ways in ((None, [1, 1, 1]), ("prefix=64", [3, 3, 3]), ("prefix=70", [3, 3, 3])):
            started(llm, [text])
            for chunks, deep in enumerate(ways, 1):
                llm.llm_engine.step()
                assert blocks(llm) == {"0": [2 * chunks, deep]}
            llm.llm_engine.step()
            prefix = int((text or "=0").partition("=")[2])
            assert blocks(llm) == {"0": [7, ceil((prefix + parse_policy(POLICY).kept(200 - prefix)) / BLOCK)]}
            finished(llm)


@pytest.mark.parametrize("chunks", [{}, CHUNKS])
def test_no_block_is_lost_where_requests_are_preempted_and_aborted(
    folder: Path, model: Any, chunks: dict[str, Any]
) -> None:
    with engine(folder, POLICY, num_gpu_blocks_override=26, **chunks) as llm:
        preempted = preemptions(llm)
        for steps in range(1, 60, 7):
            started(llm, [None, "off", None], count=60)
            for _ in range(steps):
                llm.llm_engine.step()
                blocks(llm)
            llm.llm_engine.abort_request(["0"])
            finished(llm)
        assert preempted
        assert served(llm, IDS) == expected(model, IDS, POLICY)


def test_several_groups_of_deep_layers_give_the_tokens_of_the_core_engine(folder: Path, model: Any) -> None:
    policy = f"both-ends:{HALF.replace('start=1', 'start=0')}"
    with engine(folder, policy, enable_prefix_caching=True, **CHUNKS) as llm:
        assert len(scheduler(llm).kv_cache_config.kv_cache_groups) == 4
        for prefix in (0, 70, 70):  # the second time from the cache
            ids = [IDS[0][:70] + prompt[70:] for prompt in IDS]
            want = expected(model, ids, policy, prefix=prefix)
            assert served(llm, ids, options=[f"prefix={prefix},pruning_ratio=0.6"] * 4) == want


def test_shared_blocks_of_a_prefix_are_there_once(folder: Path, model: Any) -> None:
    rules, *rests = token_ids(64, 100, 100, 100)
    ids = [rules + rest for rest in rests]
    with engine(folder, POLICY, enable_prefix_caching=True) as llm:
        want = expected(model, ids, POLICY, prefix=64)
        for _ in range(2):
            assert served(llm, ids, options=["prefix=64"] * 3) == want
        pool = scheduler(llm).kv_cache_manager.block_pool
        kept = 2 + ceil(parse_policy(POLICY).kept(100) / BLOCK)
        started(llm, ["prefix=64"] * 2, ids=ids)
        llm.llm_engine.step()
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        assert used == 2 * (ceil(164 / BLOCK) - 2 + kept - 2) + 4
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        assert scheduler(llm).kv_cache_manager.usage == 0


LARGE: dict[str, Any] = CHUNKS | {"max_model_len": 1024, "max_num_batched_tokens": 768, "max_num_seqs": 32}


def most_running(folder: Path, policy: str | None, layers: int) -> int:
    """The most prompts of 1,000 tokens that run at once. layers: number of layers that a block is for."""
    whole = 5 * 32 * 15 // layers  # blocks of five prompts whose tokens are in all of 15 layers
    with engine(folder, policy, num_gpu_blocks_override=1 + whole, **LARGE) as llm:
        groups = scheduler(llm).kv_cache_config.kv_cache_groups
        assert {len(group.layer_names) for group in groups} == {layers}
        started(llm, [None] * 20, ids=token_ids(*[1000] * 20), count=24)
        most = 0
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            most = max(most, len(blocks(llm)))
        return most


@pytest.mark.skipif(V2, reason="the scheduler does not depend on the runner")
def test_more_requests_run_in_the_same_memory(tmp_path: Path) -> None:
    saved(tmp_path, num_hidden_layers=15, max_position_embeddings=1024)
    policy = f"both-ends:{HALF.replace('start=1,pruning_ratio=0.6', 'start=2,pruning_ratio=0.64')}"
    assert most_running(tmp_path, None, 15) == 5
    assert most_running(tmp_path, policy, 3) >= 1.8 * 5


@pytest.mark.parametrize(
    ("full", "halted", "size", "count"),
    [(3, 25, 3, 10), (4, 26, 4, 8), (12, 16, 16, 2), (11, 19, 11, 3), (20, 8, 8, 4), (2, 2, 2, 2), (1, 5, 1, 6)],
)
def test_groups_are_those_that_vllm_makes(full: int, halted: int, size: int, count: int) -> None:
    import torch
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size

    from deltahalt.integrations.vllm.specs import FullSpec, HaltedSpec

    shape: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_size": 64, "dtype": torch.float32}
    kinds = [FullSpec(**shape)] * full + [HaltedSpec(**shape)] * halted
    made = _get_kv_cache_groups_uniform_page_size({str(number): kind for number, kind in enumerate(kinds)})
    groups = Groups(full, halted)
    assert (groups.size, groups.count) == (size, count)
    assert len(made) == count
    assert max(len(group.layer_names) for group in made) <= size


def test_memory_of_a_prompt_follows_from_its_groups() -> None:
    assert Groups(3, 25).memory(0.36) == pytest.approx((3 + 27 * 0.36) / 28)
    assert Groups(3, 25).memory(1) == pytest.approx(30 / 28)
    assert Groups(3, 25).problem(0.36) is None
    assert "91% of the memory" in str(Groups(3, 25).problem(0.83))
    assert "28 groups" in str(Groups(1, 27).problem(0.36))


@pytest.mark.parametrize(
    ("shallow", "deep", "share", "full", "count"),
    [
        (3, 25, 0.36, 4, 7),  # without padding, where 3 and 25 have two layers of it
        (12, 16, 0.333, 14, 2),
        (3, 77, 0.36, 5, 16),  # three in a group would be 27 groups
        (3, 12, 0.36, 3, 5),
        (27, 1, 0.36, 27, 28),  # no other way
    ],
)
def test_the_best_groups_may_give_deep_layers_blocks_for_all_tokens(
    shallow: int, deep: int, share: float, full: int, count: int
) -> None:
    groups = Groups.best(shallow, deep, share)
    assert (groups.full, groups.halted, groups.count) == (full, shallow + deep - full, count)


def test_deep_layers_with_blocks_for_all_tokens_hold_those_that_stay(tmp_path: Path) -> None:
    policy = f"both-ends:{HALF.replace('start=1,pruning_ratio=0.6', 'start=2,pruning_ratio=0.35')}"
    model = saved(tmp_path, num_hidden_layers=8)
    with engine(tmp_path, policy, enable_prefix_caching=True, **CHUNKS) as llm:
        names = [group.layer_names for group in scheduler(llm).kv_cache_config.kv_cache_groups]
        assert [len(group) for group in names] == [4, 4]  # three shallow layers and a deep one, and the other deep ones
        assert served(llm, IDS) == expected(model, IDS, policy)
        ids = [IDS[0][:70] + prompt[70:] for prompt in IDS]
        want = expected(model, ids, policy, prefix=70)
        for _ in range(2):  # the second time from the cache
            assert served(llm, ids, options=["prefix=70"] * 4) == want


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log shows."""
    found: list[str] = []
    monkeypatch.setattr(log, "info", lambda line, *parts: found.append(line % parts))
    return found


def test_the_log_says_how_many_prompts_fit(folder: Path, model: Any, lines: list[str]) -> None:
    with engine(folder, POLICY):
        kept = parse_policy(POLICY).kept(256)
    assert kept == 117
    room = f"{127 / 12:.2f} prompts of 256 tokens fit at once where 117 of these stay, and {127 / 16:.2f} whole ones"
    assert lines[-1] == f"deltahalt: {room}"


@pytest.mark.parametrize(
    ("policy", "settings", "why"),
    [
        (POLICY, {"disable_hybrid_kv_cache_manager": True}, "vLLM's hybrid KV cache manager is off"),
        (POLICY.replace("0.6", "0.05"), {}, "a prompt that halts would take 98% of the memory"),
    ],
)
def test_otherwise_the_log_says_why_not(
    folder: Path, model: Any, lines: list[str], policy: str, settings: dict[str, Any], why: str
) -> None:
    with engine(folder, policy, **settings) as llm:
        assert served(llm, IDS[:1]) == expected(model, IDS[:1], policy)
        assert len(scheduler(llm).kv_cache_config.kv_cache_groups) == 1
    assert f"deltahalt: blocks of tokens that halt in deep layers stay unused, since {why}" in lines
