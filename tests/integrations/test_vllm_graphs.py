"""CUDA graphs of steps that only decode: what deep layers read is at one address in all steps, and follows each step.

There is no GPU here. A stand-in records a forward pass as vLLM captures it, and runs it with the same tensors in place
of a replay.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltahalt import Dash
from deltahalt.integrations.vllm.plan import Plan, Row
from helpers.vllm_engine import CHUNKS, HALF, LENGTHS, V2, engine, expected, saved, served, token_ids
from helpers.vllm_replay import replayed, runner

POLICY = Dash(start=1, pruning_ratio=0.5, keep_first=2, keep_last=2)
BLOCK = 16


def decoding(prompt: int, computed: int, dropped: int) -> Row:
    """A request that decodes a token."""
    return Row("one", POLICY, prompt, 0, computed, 1, dropped)


DECODING = [decoding(40, 44, 19), decoding(20, 31, 0), decoding(60, 60, 37)]
LATER = [decoding(60, 61, 37), decoding(33, 33, 12)]


class Group:
    """A group of deep layers, with tensors for eight requests."""

    def __init__(self) -> None:
        self.lengths = torch.zeros(8, dtype=torch.int32)
        self.slots = torch.zeros(8, dtype=torch.int64)

    def of(self, given: Any, plan: Plan | None) -> Any:
        """The metadata of a step."""
        from deltahalt.integrations.vllm.decode import decoding_step

        step = decoding_step(given, plan, BLOCK, self.lengths)
        return step.common.replace(slot_mapping=step.slots(given.block_table_tensor, self.slots))


def common(rows: list[Row], padded: int) -> Any:
    """vLLM's metadata of a step in which each of these requests has one token, padded to a number of requests."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    lengths = [row.computed + 1 for row in rows] + [0] * (padded - len(rows))
    table = torch.arange(padded * 8, dtype=torch.int32).view(padded, 8) + 3
    last = [length - 1 for length in lengths[: len(rows)]]
    slots = [int(table[row, place // BLOCK]) * BLOCK + place % BLOCK for row, place in enumerate(last)]
    starts = torch.arange(padded + 1, dtype=torch.int32).clamp(max=len(rows))
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        seq_lens_cpu_upper_bound=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=padded,
        num_actual_tokens=padded,
        max_query_len=1,
        max_seq_len=max(lengths),
        block_table_tensor=table,
        slot_mapping=torch.tensor(slots + [-1] * (padded - len(rows))),
        positions=torch.tensor(lengths) - 1,
    )


@pytest.mark.parametrize("rows", [DECODING, LATER])
def test_a_step_that_decodes_has_the_counts_of_any_step(rows: list[Row]) -> None:
    from deltahalt.integrations.vllm.metadata import deep_metadata

    deep = Group().of(common(rows, len(rows)), Plan(rows, 64))
    other = deep_metadata(common(rows, len(rows)), Plan(rows, 64).pieces[0], BLOCK)
    names = ("query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound", "slot_mapping")
    for name in names:
        assert torch.equal(getattr(deep, name), getattr(other, name)), name
    for name in ("num_reqs", "num_actual_tokens", "max_query_len", "max_seq_len", "positions"):
        assert getattr(deep, name) == getattr(other, name), name


def test_all_steps_are_in_the_same_tensors() -> None:
    group, addresses = Group(), set()
    for rows, padded in ((DECODING, 4), (LATER, 2), (DECODING, 8)):
        deep = group.of(common(rows, padded), Plan(rows, 64))
        addresses.add((deep.seq_lens.data_ptr(), deep.slot_mapping.data_ptr()))
        assert deep.seq_lens.tolist() == [row.computed + 1 - row.dropped for row in rows] + [0] * (padded - len(rows))
        assert all(deep.slot_mapping[: len(rows)] > 0)
        assert all(deep.slot_mapping[len(rows) :] == -1)  # as vLLM's own
        assert len(deep.slot_mapping) == padded
    assert len(addresses) == 1


def test_without_requests_deep_layers_have_the_counts_of_shallow_ones() -> None:
    capture = common([decoding(1, 0, 0)] * 4, 4).replace(max_seq_len=4096, slot_mapping=torch.full((4,), -1))
    deep = Group().of(capture, None)
    assert deep.seq_lens.tolist() == [1] * 4
    assert deep.slot_mapping.tolist() == [-1] * 4
    assert deep.max_seq_len == 4096  # with which vLLM captures, so that a graph is right for all lengths


GRAPHS: dict[str, Any] = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="it looks at the backend for a CPU")
def test_one_build_serves_all_groups_where_the_backend_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder as Builder

    own, builds = Builder.build, []

    def build(self: Any, common_prefix_len: int, common_attn_metadata: Any, **options: Any) -> Any:
        builds.append((common_attn_metadata.max_query_len, type(self).__name__))
        return own(self, common_prefix_len, common_attn_metadata, **options)

    def update(_: Any, metadata: Any, table: torch.Tensor, slots: torch.Tensor) -> Any:
        return replace(metadata, block_table=table, slot_mapping=slots)  # as FlashAttention's builder does

    monkeypatch.setattr(Builder, "build", build)
    monkeypatch.setattr(Builder, "supports_update_block_table", True)
    monkeypatch.setattr(Builder, "update_block_table", update, raising=False)
    model, ids, policy = saved(tmp_path), token_ids(*LENGTHS), f"dash:{HALF.replace('start=1', 'start=0')}"
    with engine(tmp_path, policy) as llm:
        assert served(llm, ids) == expected(model, ids, policy)
    decoding = Counter(name for most, name in builds if most == 1)
    assert decoding["Builder"] == decoding["CPUAttentionMetadataBuilder"] > 10  # one of three deep groups


SINGLE = CHUNKS | {"max_num_batched_tokens": 2, "max_num_seqs": 2}  # chunks of one token, where two requests run
by_v2 = pytest.mark.skipif(
    not V2 or torch.cuda.is_available(),
    reason="a stand-in for graphs, by runner V2 on a CPU: with it, `make test-vllm` repeats this",
)


@by_v2
@pytest.mark.parametrize(
    ("lengths", "start", "sizes", "settings", "single"),
    [
        (LENGTHS, 1, {1, 4, 8}, {}, set()),
        ((65, 129, 150, 64, 60), 0, {1, 4}, CHUNKS, {"halts"}),
        ((40, 50, 45), 0, {1, 2}, SINGLE, {"halts", "waits"}),
    ],
)
def test_replayed_steps_give_the_tokens_of_the_core_engine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lengths: tuple[int, ...],
    start: int,
    sizes: set[int],
    settings: dict[str, Any],
    single: set[str],
) -> None:
    """start: with 0, three groups of deep layers. single: what chunks of one token do, in steps that are replayed."""
    model, ids, policy = saved(tmp_path), token_ids(*lengths), f"dash:{HALF.replace('start=1', f'start={start}')}"
    with engine(tmp_path, policy, **GRAPHS | settings) as llm:
        own, chunks = type(runner(llm).model), []
        replays, run = replayed(llm, sizes=sorted(sizes), monkeypatch=monkeypatch), own._halted

        def noted(self: Any, hidden: Any, positions: Any, plan: Any) -> Any:
            if len(positions) == len(plan.rows):
                chunks.extend("waits" if row.waits else "halts" for row in plan.rows if row.waits or row.halts)
            return run(self, hidden, positions, plan)

        monkeypatch.setattr(own, "_halted", noted)
        assert served(llm, ids) == expected(model, ids, policy)
        assert served(llm, ids[:1]) == expected(model, ids[:1], policy)
    assert {desc.num_reqs for desc in replays} == sizes
    assert len(replays) > 12
    assert set(chunks) == single


@by_v2
def test_a_replayed_chunk_leaves_a_shared_prefix_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, policy, (rules, *rests) = saved(tmp_path), f"dash:{HALF}", token_ids(40, 50, 61, 45)
    ids = [rules + rest for rest in rests]
    want = expected(model, ids, policy, prefix=40)
    with engine(tmp_path, policy, **GRAPHS | SINGLE, enable_prefix_caching=True) as llm:
        replayed(llm, sizes=[1, 2], monkeypatch=monkeypatch)
        for _ in range(2):  # the second time all find 32 tokens in the cache
            assert served(llm, ids, options=["prefix=40"] * 3) == want


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU: `make vllm-gpu`")
@pytest.mark.parametrize("settings", [GRAPHS, {"enforce_eager": False}], ids=["graphs", "compiled, and graphs"])
@pytest.mark.parametrize("chunks", [{}, CHUNKS], ids=["whole", "chunks"])
def test_cuda_graphs_give_the_tokens_of_the_core_engine(
    tmp_path: Path, settings: dict[str, Any], chunks: dict[str, Any]
) -> None:
    model, ids, policy = saved(tmp_path), token_ids(*LENGTHS), f"dash:{HALF.replace('start=1', 'start=0')}"
    with engine(tmp_path, policy, **settings | chunks) as llm:
        assert served(llm, ids) == expected(model, ids, policy)
        assert served(llm, ids[:1]) == expected(model, ids[:1], policy)
