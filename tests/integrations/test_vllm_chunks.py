"""Inside vLLM a prompt that comes in chunks gets the tokens that the core engine gives it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.vllm_engine import (
    CHUNKS,
    HALF,
    NEW,
    V2,
    engine,
    expected,
    preemptions,
    sampling,
    scheduler,
    served,
    token_ids,
)

# Deep layers keep 107 of 231 tokens, more than a step may have. 128 tokens end with a chunk, 65 one token later.
IDS = token_ids(150, 40, 231, 128, 65, 64)
POLICIES = (
    f"both-ends:{HALF}",
    f"dash:{HALF},boundary=attention,relative=true",
    f"both-ends:{HALF},boundary=attention,chunk=16",
    f"dash-layer:{HALF}",
    f"window-attention:{HALF},window=16,heads=max",
    f"key-norm:{HALF},boundary=attention",
    "uniform:start=0,keep=40,keep_first=8,keep_last=16",
)


def waiting(llm: Any) -> int:
    """Number of prompts whose states are kept for a later chunk."""
    (count,) = llm.apply_model(lambda model: len(model.halting.waiting))
    return count


@pytest.mark.parametrize("policy", POLICIES[:2] if V2 else POLICIES)
def test_chunks_give_the_tokens_of_the_core_engine(folder: Path, model: Any, policy: str) -> None:
    want = expected(model, IDS, policy)
    with engine(folder, policy, **CHUNKS) as llm:
        assert served(llm, IDS) == want
        assert served(llm, IDS[::-1]) == want[::-1]
        assert waiting(llm) == 0


@pytest.mark.parametrize(("policy", "width"), [(POLICIES[1], 4 * 128), (POLICIES[4], 128 + 64 + 2 * 128)])
def test_memory_is_measured_with_room_for_the_longest_prompt(
    folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch, policy: str, width: int
) -> None:
    """What the policy reads of each token, the states from which deep layers go on, and those that they run."""
    from vllm.forward_context import set_forward_context

    shapes, empty = [], torch.empty

    def noted(*shape: Any, **options: Any) -> torch.Tensor:
        shapes.append(shape[0])
        return empty(*shape, **options)

    def profiled(model: Any) -> None:
        zeros = torch.zeros(64, dtype=torch.long, device=model.model.norm.weight.device)
        model(zeros, zeros)

    with engine(folder, policy, **CHUNKS) as llm, set_forward_context(None, llm.llm_engine.vllm_config):
        monkeypatch.setattr(torch, "empty", noted)
        llm.apply_model(profiled)
    assert (256, width) in shapes


def test_in_chunks_too_each_request_has_its_own_ratio(folder: Path, model: Any) -> None:
    options = ["off", None, "pruning_ratio=0.3", "pruning_ratio=0", "keep=50", None]
    policies = ["dense", "dense", *(f"both-ends:start=1,keep_first=8,keep_last=16,{text}" for text in options[2:5])]
    want = [expected(model, [ids], policy)[0] for ids, policy in zip(IDS, [*policies, "dense"], strict=True)]
    with engine(folder, POLICIES[0], shortest=65, **CHUNKS) as llm:
        assert served(llm, IDS, options=options) == want


def test_a_prompt_preempted_between_its_chunks_starts_with_its_first_token(folder: Path, model: Any) -> None:
    ids, answers = token_ids(60, 60, 200), {}
    with engine(folder, POLICIES[0], num_gpu_blocks_override=19, **CHUNKS) as llm:
        preempted = preemptions(llm)
        for number, prompt in enumerate(ids):
            params = sampling(max_tokens=NEW if len(prompt) == 200 else 70)
            llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
        while llm.llm_engine.has_unfinished_requests():
            before = waiting(llm), len(preempted)
            done = [output for output in llm.llm_engine.step() if output.finished]
            answers |= {output.request_id: list(output.outputs[0].token_ids)[:NEW] for output in done}
            if len(preempted) > before[1]:
                assert (before[0], waiting(llm)) == (1, 0)
    assert len(preempted) == 1
    assert 0 < preempted[0][0] < 200
    assert [answers[str(number)] for number in range(len(ids))] == expected(model, ids, POLICIES[0])


def test_a_prompt_recomputed_in_chunks_keeps_its_generated_tokens(folder: Path, model: Any) -> None:
    ids = token_ids(60, 90, 62, 94)
    with engine(folder, POLICIES[0], num_gpu_blocks_override=22, **CHUNKS) as llm:
        preempted = preemptions(llm)
        assert served(llm, ids) == expected(model, ids, POLICIES[0])
        assert any(generated for _, generated in preempted)


def test_a_prompt_aborted_between_its_chunks_leaves_nothing(folder: Path, model: Any) -> None:
    with engine(folder, POLICIES[0], **CHUNKS) as llm:
        for name, ids in zip(("first", "second"), (IDS[1], IDS[2]), strict=True):
            llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, sampling(max_tokens=100))
        for _ in range(2):
            llm.llm_engine.step()
        assert waiting(llm) == 1
        llm.llm_engine.abort_request(["second"])
        llm.llm_engine.step()
        assert waiting(llm) == 0
        llm.llm_engine.add_request("third", {"prompt_token_ids": IDS[0]}, sampling())
        for _ in range(2):
            llm.llm_engine.step()
        assert waiting(llm) == 1
        llm.llm_engine.abort_request(["first", "third"])
        llm.llm_engine.step()
        assert waiting(llm) == 0
        assert scheduler(llm).kv_cache_manager.usage == 0
        assert served(llm, IDS) == expected(model, IDS, POLICIES[0])
