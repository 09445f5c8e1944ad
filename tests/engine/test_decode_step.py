"""Generated tokens that run as one recorded step equal those that run layer by layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, Dense, Forecast, KeyNorm, Policy, Progressive, SingleInputKV, halting
from deltahalt.engine.cache import HaltedCache
from deltahalt.engine.recorded import decoding
from deltahalt.engine.recorded import step as decode_step
from deltahalt.host import one_query
from deltahalt.host.compat import CACHE
from helpers.frozen import frozen
from helpers.oracle import Feed
from helpers.recording import conversation, decoded, recorded_steps
from helpers.tiny import FULL_VARIANTS, prompts, tiny

TOLERANCE = 1e-5
DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
POLICIES: dict[str, Policy | Progressive] = {
    "nothing halted": Dense(),
    "ratio 0": Dash(start=1, pruning_ratio=0.0),
    "two stages": Progressive(
        [
            KeyNorm(start=1, pruning_ratio=0.3, keep_first=2, keep_last=4),
            Dash(start=3, pruning_ratio=0.7, keep_first=1, keep_last=3, boundary="attention"),
        ]
    ),
    "an exit": SingleInputKV(start=3, keep_last=4),
    "a forecast": Forecast(start=2, keep_last=9),
    "frozen": frozen(DASH),
}
LENGTHS = [(40,), (40, 29)]


def generated(
    model: Any, policy: Policy | Progressive, lengths: tuple[int, ...], cache: Any = None, **options: Any
) -> Any:
    """Greedy tokens with their logits, and the cache."""
    ids, mask = prompts(*lengths)
    options = {"max_new_tokens": 9, "do_sample": False, "output_logits": True} | options
    cache = DynamicCache(config=model.config) if cache is None else cache
    with halting(model, policy, decode_graphs=None):
        return model.generate(ids, attention_mask=mask, **{CACHE: cache}, return_dict_in_generate=True, **options)


def same(ours: Any, theirs: Any) -> None:
    """Tokens, logits, and all that the caches hold."""
    assert torch.equal(ours.sequences, theirs.sequences)
    assert (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max() < TOLERANCE
    same_cache(getattr(ours, CACHE), getattr(theirs, CACHE))


def same_cache(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.allclose(one.keys, other.keys, atol=TOLERANCE)
        assert torch.allclose(one.values, other.values, atol=TOLERANCE)
    if isinstance(theirs, HaltedCache):
        assert ours.seen == theirs.seen
        for mine, own in zip(ours.segments, theirs.segments, strict=True):
            assert torch.equal(mine.slots, own.slots)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("variant", FULL_VARIANTS)
def test_every_family(variant: str, lengths: tuple[int, ...]) -> None:
    theirs = generated(tiny(variant), DASH, lengths)
    with recorded_steps() as ran:
        same(generated(tiny(variant), DASH, lengths), theirs)
    assert len(ran) == 7  # of nine tokens, the prefill gives one, and the first after it runs layer by layer
    assert len(set(ran)) == 1


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_kind_of_policy(policy: str, lengths: tuple[int, ...]) -> None:
    theirs = generated(tiny(), POLICIES[policy], lengths)
    with recorded_steps() as ran:
        same(generated(tiny(), POLICIES[policy], lengths), theirs)
    assert len(ran) == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_to_float32_as_the_host(dtype: torch.dtype) -> None:
    exact, host = (decoded(tiny(dtype=kind), Dense(), 40, 29, graphs=False) for kind in (torch.float32, dtype))
    with recorded_steps() as ran:
        ours = decoded(tiny(dtype=dtype), Dense(), 40, 29, graphs=None)
    assert len(ran) == 5
    assert 0 < (ours - exact).norm() < 1.5 * (host - exact).norm()


def test_room_that_is_used_up_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = generated(tiny(), DASH, (40, 29), max_new_tokens=30)
    monkeypatch.setattr(decoding, "ROOM", 2)
    for module in (one_query, decode_step):
        monkeypatch.setattr(module, "PART", 4)
    with recorded_steps() as ran:
        same(generated(tiny(), DASH, (40, 29), max_new_tokens=30), theirs)
    assert len(ran) == 28
    assert len({id(step) for step in ran}) == 4


def test_all_that_can_happen_to_a_cache_between_tokens() -> None:
    theirs = conversation(tiny(), DASH, graphs=False)
    with recorded_steps() as ran:
        ours = conversation(tiny(), DASH, graphs=True)
    assert len({id(step) for step in ran}) > 5
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def test_two_caches_take_turns() -> None:
    def logits(model: Any) -> list[torch.Tensor]:
        with halting(model, DASH, decode_graphs=None):
            feeds = [Feed(model), Feed(model)]
            for seed, feed in enumerate(feeds):
                feed(*prompts(40, seed=seed), logits_to_keep=1)
            return [feed(prompts(1, seed=step)[0]) for step in range(6) for feed in feeds]

    theirs = logits(tiny())
    with recorded_steps() as ran:
        ours = logits(tiny())
    assert len(ran) == 10
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def _reorder(feed: Feed) -> None:
    feed.cache.reorder_cache(torch.tensor([1, 0]))


def _replace_values(feed: Feed) -> None:
    layer: Any = feed.cache.layers[3]
    layer.values = layer.values * 1.5


def _hide_tokens(feed: Feed) -> None:
    feed.mask = feed.mask.clone()
    feed.mask[1, :20] = 0


@pytest.mark.parametrize("change", [_reorder, _replace_values, _hide_tokens])
@pytest.mark.parametrize("lengths", [(40, 40), (40, 29)], ids=str)
def test_changes_that_leave_the_number_of_entries(lengths: tuple[int, ...], change: Callable[[Feed], None]) -> None:
    def logits(*, graphs: bool | None) -> torch.Tensor:
        model = tiny()
        with halting(model, Dense(), decode_graphs=graphs):
            feed = Feed(model)
            found = [feed(*prompts(*lengths), logits_to_keep=1)]
            for step in range(8):
                if step == 4:
                    change(feed)
                found.append(feed(prompts(1, 1, seed=step)[0]))
        return torch.cat(found)

    theirs = logits(graphs=False)
    with recorded_steps() as ran:
        assert (logits(graphs=None) - theirs).abs().max() < TOLERANCE
    assert len(ran) == 6
    assert len(set(ran)) == 2


def test_what_a_recording_depends_on_is_seen_when_it_changes() -> None:
    def logits(model: Any) -> list[torch.Tensor]:
        """Of four tokens before and after each change."""
        first, second = (model.model.layers[index].mlp for index in (2, 4))
        changes: list[Callable[[], Any]] = [
            lambda: setattr(first, "up_proj", torch.nn.Linear(64, 96, bias=False).requires_grad_(False)),
            lambda: setattr(second.up_proj, "weight", torch.nn.Parameter(second.up_proj.weight * 2)),
            lambda: second.register_forward_hook(lambda *given: given[2] * 1.5),
        ]
        with halting(model, DASH, decode_graphs=None):
            feed = Feed(model)
            feed(*prompts(40), logits_to_keep=1)
            found = [feed(prompts(1, seed=step)[0]) for step in range(4)]
            for number, change in enumerate(changes):
                torch.manual_seed(0)
                change()
                found += [feed(prompts(1, seed=4 * number + step)[0]) for step in range(4)]
        return found

    theirs = logits(tiny())
    with recorded_steps() as ran:
        ours = logits(tiny())
    assert len(ran) == 9  # all but the first of four, and none after the hook
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def test_entries_that_the_cache_has_shown_stay_as_they_are() -> None:
    model = tiny()
    with recorded_steps(), halting(model, DASH, decode_graphs=None):
        feed = Feed(model)
        feed(*prompts(40), logits_to_keep=1)
        for step in range(4):
            feed(prompts(1, seed=step)[0])
        held: Any = feed.cache.layers
        shown = [layer.keys for layer in held]
        before = [keys.clone() for keys in shown]
        feed.cache.crop(-2)
        feed.mask = feed.mask[:, :-2]
        for step in range(4):
            feed(prompts(1, seed=10 + step)[0])
    assert all(torch.equal(now, then) for now, then in zip(shown, before, strict=True))


def test_recordings_end_with_the_block_and_with_their_cache() -> None:
    model = tiny()
    with recorded_steps(), halting(model, DASH, decode_graphs=None) as halted:
        feed = Feed(model)
        for tokens in (40, 1, 1, 1):
            feed(*prompts(tokens), logits_to_keep=1)
        assert len(halted.decoding._recorded) == 1
        feed(*prompts(9), logits_to_keep=1)  # a later turn
        assert len(halted.decoding._recorded) == 0
        for tokens in (1, 1, 1):
            feed(*prompts(tokens), logits_to_keep=1)
        assert len(halted.decoding._recorded) == 1
        del feed
        assert len(halted.decoding._recorded) == 0
        other = Feed(model)
        for tokens in (40, 1, 1, 1):
            other(*prompts(tokens), logits_to_keep=1)
        assert len(halted.decoding._recorded) == 1
    assert len(halted.decoding._recorded) == 0
