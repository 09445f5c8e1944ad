"""Many requests of all kinds inside vLLM: each gets the tokens that it gets alone, and nothing of it is left."""

import os
import random
from pathlib import Path
from typing import Any, NamedTuple

from helpers.vllm_engine import CHUNKS, HALF, NEW, engine, expected, preemptions, sampling, saved, scheduler, token_ids

REQUESTS = int(os.environ.get("DELTAHALT_SOAK_REQUESTS", "200"))  # 1,000 take a minute on two cores
POLICY = f"both-ends:{HALF}"
(RULES,) = token_ids(70)


class Order(NamedTuple):
    """A request. text: its entry `deltahalt`. policy, prefix: the same for the core engine. aborted: after a step."""

    ids: list[int]
    text: str | None
    policy: str
    prefix: int
    tokens: int
    aborted: int | None


def drawn(draw: random.Random, vocabulary: int) -> Order:
    """A request of random length, options and end."""
    ids = [draw.randrange(1, vocabulary) for _ in range(draw.randint(5, 160))]
    number = draw.randint(1, 200)
    share = draw.choice((0.1, 0.3, 0.5, 0.9, 1.0))
    text, policy, prefix = draw.choice(
        (
            (None, POLICY, 0),
            ("off", "dense", 0),
            (f"pruning_ratio={share}", POLICY.replace("0.6", str(share)), 0),
            (f"keep={number}", POLICY.replace("pruning_ratio=0.6", f"keep={number}"), 0),
            (f"prefix={len(RULES)}", POLICY, len(RULES)),
        )
    )
    if prefix or draw.random() < 0.2:
        ids = RULES + ids
    aborted = draw.randint(0, 12) if draw.random() < 0.1 else None
    return Order(ids, text, policy, prefix, draw.randint(1, NEW), aborted)


def test_requests_of_all_kinds_get_what_they_get_alone(tmp_path: Path) -> None:
    model, draw = saved(tmp_path), random.Random(0)
    orders = {str(number): drawn(draw, model.config.vocab_size) for number in range(REQUESTS)}
    settings: dict[str, Any] = {"num_gpu_blocks_override": 24, "enable_prefix_caching": True}
    with engine(tmp_path, POLICY, **CHUNKS, **settings) as llm:
        preempted, given = preemptions(llm), _serve(llm.llm_engine, dict(orders), draw)
        (waiting,) = llm.apply_model(lambda served: len(served.halting.waiting))
        assert (scheduler(llm).kv_cache_manager.usage, waiting) == (0, 0)
    assert preempted
    for name, order in orders.items():
        if order.aborted is None:
            (alone,) = expected(model, [order.ids], order.policy, prefix=order.prefix)
            assert given[name] == alone[: order.tokens], f"request {name}: {order}"


def _serve(running: Any, coming: dict[str, Order], draw: random.Random) -> dict[str, list[int]]:
    """The tokens of each request, of which up to three come before each step."""
    given: dict[str, list[int]] = {}
    ends: dict[str, int] = {}  # number of steps until a request is aborted
    while coming or running.has_unfinished_requests():
        for _ in range(min(len(coming), draw.randint(0, 3))):
            name = next(iter(coming))
            order = coming.pop(name)
            options = None if order.text is None else {"deltahalt": order.text}
            params = sampling(max_tokens=order.tokens, extra_args=options)
            running.add_request(name, {"prompt_token_ids": order.ids}, params)
            if order.aborted is not None:
                ends[name] = order.aborted
        for output in running.step():
            given[output.request_id.partition("-")[0]] = list(output.outputs[0].token_ids)
        running.abort_request([name for name, left in ends.items() if left == 0])
        ends = {name: left - 1 for name, left in ends.items() if left}
    return given
