"""Each prompt that halts has a line in the log, and counts beside vLLM's own."""

import re
from pathlib import Path
from typing import Any

import pytest

from deltahalt import parse_policy
from deltahalt.integrations.vllm.shared import log
from helpers.vllm_engine import CHUNKS, HALF, engine, outputs, preemptions, sampling, scheduler, served, token_ids

POLICY = f"both-ends:{HALF}"
LENGTHS = (150, 40, 220, 90)
LINE = re.compile(
    r"request (\w+)-\w+: (\d+) of (\d+) tokens stay; layers 0-1 ran (\d+), layers 2-3 ran (\d+); prefill ([\d.]+) ms"
)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of each line about a request: tokens that stay, of all, those that shallow and deep layers ran."""
    found: list[tuple[int, ...]] = []

    def info(line: str, *parts: Any) -> None:
        shown = LINE.fullmatch(line % parts)
        if line.startswith("request"):
            assert shown is not None
            assert 0 < float(shown[6]) < 60_000
            found.append(tuple(map(int, shown.groups()[1:5])))

    monkeypatch.setattr(log, "info", info)
    return found


def counts(model: Path, registry: Any = None) -> list[float]:
    """Of a model: the number of prompts that halted, of their tokens, and of those that did not halt."""
    from prometheus_client import REGISTRY

    labels = {"model_name": str(model), "engine": "0"}
    names = ("prompts_halted", "prompt_tokens", "prompt_tokens_kept")
    return [(registry or REGISTRY).get_sample_value(f"deltahalt:{name}_total", labels) or 0 for name in names]


@pytest.mark.parametrize("chunks", [{}, CHUNKS])
def test_prompts_that_halt_have_a_line_and_counts(
    folder: Path, model: Any, lines: list[tuple[int, ...]], chunks: dict[str, Any]
) -> None:
    policy, before = parse_policy(POLICY), counts(folder)
    long = [length for length in LENGTHS if length >= 80]
    kept = [policy.kept(length) for length in long]
    with engine(folder, POLICY, shortest=80, **chunks) as llm:
        assert counts(folder) == before
        served(llm, token_ids(*LENGTHS))
        outputs(llm, token_ids(150), ["off"])
    assert sorted(lines) == sorted((stay, all_, all_, stay) for stay, all_ in zip(kept, long, strict=True))
    added = [after - earlier for after, earlier in zip(counts(folder), before, strict=True)]
    assert added == [len(long), sum(long), sum(kept)]


def test_several_servers_show_counts_from_their_own_folder(
    folder: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (ids,) = token_ids(150)
    with engine(folder, POLICY, disable_log_stats=True) as llm:
        served(llm, [ids])
    shared = CollectorRegistry()
    MultiProcessCollector(shared, str(tmp_path))
    assert counts(folder, shared) == [1, 150, parse_policy(POLICY).kept(150)]


def test_tokens_found_in_the_cache_did_not_run(folder: Path, model: Any, lines: list[tuple[int, ...]]) -> None:
    rules, rest, other = token_ids(70, 90, 60)
    with engine(folder, POLICY, enable_prefix_caching=True) as llm:
        for ids in (rules + rest, rules + other):
            outputs(llm, [ids], ["prefix=70"])
    (stay, *_), (stay_after, *_) = lines
    assert lines == [(stay, 160, 160, stay), (stay_after, 130, 66, stay_after - 64)]


def test_a_preempted_prompt_is_noted_once_and_an_aborted_one_never(
    folder: Path, model: Any, lines: list[tuple[int, ...]]
) -> None:
    ids = token_ids(60, 90, 62, 94)
    with engine(folder, POLICY, num_gpu_blocks_override=22, **CHUNKS) as llm:
        preempted = preemptions(llm)
        served(llm, ids)
        assert preempted
        assert sorted(total for _, total, *_ in lines) == sorted(map(len, ids))
        llm.llm_engine.add_request("gone", {"prompt_token_ids": ids[1]}, sampling())
        llm.llm_engine.step()
        llm.llm_engine.abort_request(["gone"])
        served(llm, ids[:1])
        assert scheduler(llm)._begun == {}
    assert len(lines) == 5
