"""A block is for the calls of its own context: threads, what began in it, copies of the model, direct calls."""

import asyncio
import contextvars
import copy
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from deltahalt import Dash, Dense, KeyNorm, UnsupportedError, halting
from deltahalt.engine.cache import HaltedCache
from deltahalt.errors import UnhaltedCallWarning
from deltahalt.host.compat import CACHE
from helpers.oracle import Feed
from helpers.tiny import attributes, prompts, tiny

DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
LATE = KeyNorm(start=3, pruning_ratio=0.4, keep_first=4, keep_last=1)
IDS, MASK = prompts(40, 29)
GREEDY: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 4, "do_sample": False}


def run(model: Any) -> torch.Tensor:
    return Feed(model)(IDS, MASK, logits_to_keep=1)


def halted(model: Any, policy: Any = DASH) -> torch.Tensor:
    with halting(model, policy):
        return run(model)


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What the call returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


class Gate(BaseStreamer):
    """Holds a generation after its first token until it is let through."""

    def __init__(self) -> None:
        self.reached, self.through, self.calls = threading.Event(), threading.Event(), 0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:  # the prompt comes first
            self.reached.set()
            assert self.through.wait(60)

    def end(self) -> None:
        pass


# Threads


def test_a_thread_that_did_not_open_the_block_gets_the_full_model() -> None:
    model = tiny()
    full = run(model)
    with halting(model, DASH) as attached:
        ours = run(model)
        report = attached.report
        assert torch.equal(in_a_thread(lambda: run(model)), full)
        assert attached.report is report
    assert not torch.equal(ours, full)


def test_a_thread_may_do_in_another_s_block_what_halting_refuses() -> None:
    model = tiny()
    with halting(model, DASH):
        run(model)
        assert in_a_thread(lambda: model(IDS, MASK, labels=IDS)).loss.isfinite()
        assert in_a_thread(lambda: model(IDS, output_hidden_states=True)).hidden_states is not None


def test_two_threads_halt_one_model_each_by_its_own_policy() -> None:
    model = tiny()
    before = attributes(model)
    policies = {"dash": DASH, "late": LATE, "full": Dense()}
    alone = {name: halted(tiny(), policy) for name, policy in policies.items()}
    barrier = threading.Barrier(len(policies))

    def many(name: str) -> list[torch.Tensor]:
        with halting(model, policies[name]) as attached:
            barrier.wait(60)
            logits = [run(model) for _ in range(10)]
            assert attached.policy is policies[name]
            assert [layer for layer, _ in attached.report.stages] == {"dash": [1], "late": [3], "full": []}[name]
        return logits

    with ThreadPoolExecutor(len(policies)) as pool:
        together = dict(zip(policies, pool.map(many, policies), strict=True))
    assert all(torch.equal(logits, alone[name]) for name in policies for logits in together[name])
    assert attributes(model) == before


def test_what_somebody_puts_over_a_method_in_the_block_is_called() -> None:
    model, calls = tiny(), []
    with halting(model, DASH) as attached:
        usual = model.model.forward
        model.model.forward = lambda *args, **kwargs: calls.append("over") or usual(*args, **kwargs)
        expected = model.generate(IDS, **GREEDY)
        assert calls == ["over"] * 4
        assert torch.equal(attached.generate(IDS, **GREEDY), expected)
        assert calls == ["over"] * 8
        model.model.forward = usual
    assert "forward" not in vars(model.model)


def test_a_second_block_in_the_same_context_is_refused() -> None:
    model = tiny()
    with halting(model, DASH), pytest.raises(UnsupportedError, match="halting already"), halting(model, LATE):
        pass


@pytest.mark.parametrize("how", ["handle", "context"])
def test_a_thread_started_in_the_block_halts(how: str) -> None:
    model = tiny()
    with halting(model, DASH) as attached:
        expected = model.generate(IDS, **GREEDY)
    assert attached.report.stages
    with halting(model, DASH) as attached:
        if how == "handle":
            tokens = in_a_thread(lambda: attached.generate(IDS, **GREEDY))
        else:
            context = contextvars.copy_context()
            tokens = in_a_thread(lambda: context.run(model.generate, IDS, **GREEDY))
    assert torch.equal(tokens, expected)
    assert [layer for layer, _ in attached.report.stages] == [1]


@pytest.mark.parametrize("how", ["handle", "context"])
def test_a_generation_ends_as_it_began_after_its_block_is_left(how: str) -> None:
    model, gate, done = tiny(), Gate(), []
    before, full = attributes(model), run(model)
    one = {"max_new_tokens": 6, "do_sample": False}
    with halting(model, DASH):
        expected = model.generate(IDS[:1], **one)
    with halting(model, DASH) as attached:
        context = contextvars.copy_context()
        generate = attached.generate if how == "handle" else lambda *a, **k: context.run(model.generate, *a, **k)
        thread = threading.Thread(target=lambda: done.append(generate(IDS[:1], streamer=gate, **one)))
        thread.start()
        assert gate.reached.wait(60)
    assert torch.equal(run(model), full)  # this thread has left the block
    gate.through.set()
    thread.join(60)
    assert torch.equal(done[0], expected)
    assert [layer for layer, _ in attached.report.stages] == [1]
    assert attributes(model) == before


def test_what_begins_in_a_copied_context_after_the_block_is_the_full_model() -> None:
    model = tiny()
    full = run(model)
    with halting(model, DASH):
        context = contextvars.copy_context()
    assert torch.equal(context.run(run, model), full)


def test_the_handle_halts_after_the_block_too() -> None:
    """A thread may reach its first line only when the block has been left."""
    model = tiny()
    before = attributes(model)
    with halting(model, DASH) as attached:
        expected = model.generate(IDS, **GREEDY)
    assert torch.equal(attached.generate(IDS, **GREEDY), expected)
    assert attributes(model) == before


def test_tasks_of_asyncio() -> None:
    model = tiny()
    full, ours = run(model), halted(tiny())

    async def outside(opened: asyncio.Event, done: asyncio.Event) -> torch.Tensor:
        await opened.wait()
        logits = run(model)
        done.set()
        return logits

    async def inside(opened: asyncio.Event, done: asyncio.Event) -> tuple[torch.Tensor, torch.Tensor]:
        with halting(model, DASH):
            opened.set()
            await done.wait()
            return run(model), await asyncio.to_thread(run, model)

    async def both() -> Any:
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(outside(*events), inside(*events))

    plain, (here, in_thread) = asyncio.run(both())
    assert torch.equal(plain, full)
    assert torch.equal(here, ours)
    assert torch.equal(in_thread, ours)


def test_a_block_in_which_only_another_thread_ran_the_model_is_warned_of() -> None:
    model = tiny()
    with pytest.warns(UnhaltedCallWarning, match=r"start it with halted\.generate"), halting(model, DASH):
        in_a_thread(lambda: model.generate(IDS, **GREEDY))


# Copies


def ways_to_copy() -> dict[str, Callable[[Any], Any]]:
    def saved(model: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    return {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved}


@pytest.mark.parametrize("how", ways_to_copy())
def test_a_copy_made_in_the_block_is_an_ordinary_model_of_its_own(how: str) -> None:
    model = tiny()
    full, generated = run(model), model.generate(IDS, **GREEDY)
    with halting(model, DASH):
        twin = ways_to_copy()[how](model)
        assert torch.equal(run(twin), full)
        assert torch.equal(twin.generate(IDS, **GREEDY), generated)
    with torch.no_grad():
        model.lm_head.weight.neg_()  # the copy has weights of its own
    assert torch.equal(run(twin), full)
    assert torch.equal(twin.generate(IDS, **GREEDY), generated)
    assert twin(IDS, MASK, labels=IDS).loss.isfinite()
    assert torch.equal(halted(twin), halted(tiny()))
    assert torch.equal(copy.deepcopy(twin)(IDS, MASK).logits, twin(IDS, MASK).logits)


def test_a_shallow_copy_shares_the_decoder_and_so_the_block() -> None:
    model = tiny()
    full = run(model)
    with halting(model, DASH):
        twin = copy.copy(model)
        assert torch.equal(run(twin), halted(tiny()))
    assert torch.equal(run(twin), full)
    assert torch.equal(twin.generate(IDS, **GREEDY), model.generate(IDS, **GREEDY))


def test_weights_may_be_read_and_moved_in_the_block() -> None:
    model, names = tiny(), set(tiny().state_dict())
    with halting(model, DASH):
        assert set(model.state_dict()) == names
        model.to(torch.bfloat16)
        ours = run(model)
    other = tiny().to(torch.bfloat16)
    assert torch.equal(ours, halted(other))


# Calls past `model(...)`


REFUSED = {
    "labels": ("labels are not supported", {"labels": IDS}),
    "labels by place": ("labels are not supported", {"args": (IDS, MASK, None, None, None, IDS)}),
    "all logits": ("pass logits_to_keep=1", {}),
}


@pytest.mark.parametrize(("message", "call"), REFUSED.values(), ids=REFUSED)
def test_forward_called_directly_is_checked(message: str, call: dict[str, Any]) -> None:
    model, options = tiny(), {"attention_mask": MASK, **call}
    args = options.pop("args", (IDS,))
    if len(args) > 1:
        del options["attention_mask"]
    with halting(model, DASH), pytest.raises(UnsupportedError, match=message):
        model.forward(*args, **options)


def test_forward_called_directly_halts() -> None:
    model = tiny()
    positions = (MASK.cumsum(dim=1) - 1).clamp(min=0)
    with halting(model, DASH), torch.no_grad():
        logits = model.forward(IDS, MASK, positions, logits_to_keep=1).logits
    assert torch.equal(logits, halted(tiny()))


def test_a_second_head_on_the_decoder_halts_too() -> None:
    """As its documentation says: a block is for every call that reaches the decoder."""
    model = tiny()
    head = torch.nn.Linear(64, 2)
    with halting(model, DASH) as attached, torch.no_grad():
        states = model.get_decoder()(IDS, MASK).last_hidden_state
    assert attached.report.stages
    assert head(states)[:, -1].isfinite().all()
    assert head(states).isnan().any()


# Why nothing halted


def test_the_reason_for_a_whole_prompt() -> None:
    model = tiny()
    with halting(model, Dash(start=1)) as attached:  # protects more tokens than there are
        run(model)
    assert attached.report.reason == "the policy keeps every token of prompts of 40 tokens or fewer"
    with halting(model, DASH, min_prompt_tokens=50) as attached:
        run(model)
    assert attached.report.reason == "every prompt is shorter than min_prompt_tokens=50"
    with halting(model, DASH) as attached:
        run(model)
    assert attached.report.reason is None


def test_a_prefix_before_a_prompt_whose_logits_are_all_wanted_is_the_reason() -> None:
    model = tiny()
    cache = DynamicCache(config=model.config)
    for layer in range(6):
        cache.update(torch.randn(2, 2, 5, 16), torch.randn(2, 2, 5, 16), layer)
    mask = torch.cat([torch.ones(2, 5, dtype=torch.long), torch.ones_like(MASK)], dim=1)
    with halting(model, DASH) as attached, torch.no_grad():
        model(IDS, attention_mask=mask, **{CACHE: cache})
    report = attached.report
    assert report.reason is not None
    assert "the latest 40 tokens continue a cache of 5: tokens of a later turn halt only where" in report.reason
    assert (report.prompts, report.stages, report.cached) == ((40, 40), (), (5,) * 6)
    assert report.speedup_bound == 1
    assert report.flops > halted_report(tiny(), Dense()).flops


def halted_report(model: Any, policy: Any) -> Any:
    with halting(model, policy) as attached:
        run(model)
    return attached.report


def test_a_later_turn_is_the_reason() -> None:
    model = tiny()
    with halting(model, DASH) as attached:
        feed = Feed(model)
        feed(IDS, MASK, logits_to_keep=1)
        first = attached.report
        feed(IDS[:, :1])
        assert attached.report is first
        feed(IDS[:, :12])
        assert isinstance(feed.cache, HaltedCache)
    assert attached.report.stages == first.stages
    assert "the latest 12 tokens continue a cache of 41" in (attached.report.reason or "")
