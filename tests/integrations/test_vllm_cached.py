"""Inside vLLM requests share K/V of tokens that never halt, and of no others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.vllm_engine import CHUNKS, HALF, V2, engine, expected, outputs, preemptions, token_ids, tokens

POLICY = f"both-ends:{HALF}"
CACHED: dict[str, Any] = {"enable_prefix_caching": True}
RULES, *RESTS = token_ids(70, 150, 40, 120, 90, 33)  # 70 tokens fill two blocks of 32, and a part of a third
IDS = [RULES + rest for rest in RESTS]


def answered(llm: Any, ids: Sequence[list[int]], *options: str | None) -> tuple[list[list[int]], list[int]]:
    """Each request's generated tokens, and the number of its prompt's tokens that were found in the cache."""
    done = outputs(llm, ids, options * len(ids) if len(options) == 1 else options)
    return tokens(done), [output.num_cached_tokens for output in done]


@pytest.mark.parametrize("chunks", [CHUNKS] if V2 else [{}, CHUNKS])
def test_a_shared_prefix_gives_the_tokens_of_a_later_turn(folder: Path, model: Any, chunks: dict[str, Any]) -> None:
    want = expected(model, IDS, POLICY, prefix=70)
    assert sum(one != other for one, other in zip(want, expected(model, IDS, POLICY), strict=True)) > 2
    with engine(folder, POLICY, **chunks) as llm:
        assert answered(llm, IDS, "prefix=70") == (want, [0] * 5)
    with engine(folder, POLICY, **CACHED, **chunks) as llm:
        assert answered(llm, IDS[:1], "prefix=70") == (want[:1], [0])
        assert answered(llm, IDS, "prefix=70") == (want, [64] * 5)
        assert answered(llm, IDS, "prefix=40") == (expected(model, IDS, POLICY, prefix=40), [32] * 5)


@pytest.mark.skipif(V2, reason="a policy does not depend on the runner")
@pytest.mark.parametrize("policy", [f"window-attention:{HALF},window=16", f"key-norm:{HALF},boundary=attention"])
def test_queries_and_keys_after_a_shared_prefix_are_those_of_a_later_turn(
    folder: Path, model: Any, policy: str
) -> None:
    want = expected(model, IDS, policy, prefix=70)
    with engine(folder, policy, **CACHED, **CHUNKS) as llm:
        assert answered(llm, IDS[:1], "prefix=70") == (want[:1], [0])
        assert answered(llm, IDS, "prefix=70") == (want, [64] * 5)


def test_prompts_sent_at_once_share_their_prefix(folder: Path, model: Any) -> None:
    ids = [*IDS, *(RULES + rest for rest in token_ids(31, 75, 140))]
    with engine(folder, POLICY, **CACHED) as llm:
        answers, cached = answered(llm, ids, "prefix=70")
    assert answers == expected(model, ids, POLICY, prefix=70)
    assert cached[1:] == [64] * 7


def test_blocks_of_halted_tokens_are_not_shared(folder: Path, model: Any) -> None:
    halted, whole = expected(model, IDS, POLICY), expected(model, IDS, "dense")
    follow_up = [IDS[1] + halted[1] + RESTS[4]]
    with engine(folder, POLICY, **CACHED) as llm:
        for _ in range(2):
            assert answered(llm, IDS, None) == (halted, [0] * 5)
        assert answered(llm, follow_up, "off") == (expected(model, follow_up, "dense"), [0])
        assert answered(llm, IDS, "off")[0] == whole
        answers, cached = answered(llm, IDS, "off")
        assert answers == whole
        assert cached == [192, 96, 160, 128, 96]
        assert answered(llm, IDS, None) == (halted, [0] * 5)
        assert answered(llm, IDS, "prefix=100,keep=20", "prefix=1000", None, "off", "pruning_ratio=0.5,prefix=0") == (
            [
                *expected(model, IDS[:1], f"{POLICY},keep=20".replace("pruning_ratio=0.6,", ""), prefix=100),
                whole[1],
                halted[2],
                whole[3],
                *expected(model, IDS[4:], POLICY.replace("0.6", "0.5")),
            ],
            [96, 96, 0, 128, 0],
        )


def test_short_prompts_are_shared_whole(folder: Path, model: Any) -> None:
    want = expected(model, IDS, POLICY, min_prompt_tokens=120)
    with engine(folder, POLICY, shortest=120, **CACHED) as llm:
        answered(llm, IDS, None)
        assert answered(llm, IDS, None) == (want, [0, 96, 0, 0, 96])


def test_a_preempted_prompt_finds_its_prefix_again(folder: Path, model: Any) -> None:
    ids = [RULES[:40] + rest for rest in token_ids(54, 54, 54, 54)]
    want = expected(model, ids, POLICY, prefix=40)
    for settings in ({}, CHUNKS):
        with engine(folder, POLICY, num_gpu_blocks_override=22, **CACHED, **settings) as llm:
            preempted = preemptions(llm)
            assert answered(llm, ids, "prefix=40")[0] == want
            assert preempted
