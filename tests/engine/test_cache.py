"""A halted cache goes through beams, samples, crops, copies and turns of a dialogue, and stays right."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import Dash, InputError, KeyNorm, Policy, Progressive, UnsupportedError, halting
from deltahalt.engine.cache import HaltedCache
from deltahalt.host.compat import CACHE
from helpers.frozen import frozen, plain
from helpers.oracle import Feed, Oracle
from helpers.tiny import FULL, VOCAB, WINDOW, prompts, tiny

TOLERANCE = 1e-5
DASH = Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)
TWO_STAGES = Progressive(
    [
        KeyNorm(start=1, pruning_ratio=0.3, keep_first=2, keep_last=4),
        Dash(start=3, pruning_ratio=0.6, keep_first=2, keep_last=3),
    ]
)
WAYS: dict[str, Policy | Progressive] = {
    "drop": DASH,
    "frozen": frozen(DASH),
    "two stages": TWO_STAGES,
    "two stages, frozen": frozen(TWO_STAGES),
}


def tokens(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) < TOLERANCE


def prefilled(model: Any, *lengths: int) -> Feed:
    feed = Feed(model)
    feed(*prompts(*lengths), logits_to_keep=1)
    assert isinstance(feed.cache, HaltedCache)
    return feed


def state(cache: Any) -> list[torch.Tensor]:
    """All that a halted cache holds."""
    stored = [part.clone() for layer in cache.layers for part in (layer.keys, layer.values)]
    counts = torch.tensor([cache.seen, cache.tail, *(layer.get_seq_length() for layer in cache.layers)])
    return [*stored, *(segment.slots.clone() for segment in cache.segments), counts]


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def model(request: pytest.FixtureRequest) -> Any:
    """A model that halts, in each way."""
    model = tiny()
    with halting(model, request.param):
        yield model


# The cache itself


def test_the_callers_cache_becomes_the_halted_one(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        output = model(prompts(40)[0], **{CACHE: cache}, logits_to_keep=1)
    assert getattr(output, CACHE) is cache
    assert isinstance(cache, HaltedCache)


def test_length_counts_halted_tokens_too(model: Any) -> None:
    feed = prefilled(model, 40, 29)
    assert [feed.cache.get_seq_length(layer) for layer in range(6)] == [40] * 6
    feed(tokens(2, 4))
    assert feed.cache.get_seq_length() == 44


def test_deeper_layers_hold_fewer_tokens() -> None:
    model = tiny()
    with halting(model, DASH):
        cache: Any = prefilled(model, 40, 29).cache
    assert [layer.keys.shape[-2] for layer in cache.layers] == [40, 40, 19, 19, 19, 19]


def test_a_cache_that_nothing_was_halted_in_stays_plain() -> None:
    model = tiny()
    with halting(model, DASH):
        feed = Feed(model)
        feed(*prompts(5))
    assert type(feed.cache) is DynamicCache


def test_emptying_is_refused(model: Any) -> None:
    with pytest.raises(UnsupportedError, match="make a new DynamicCache"):
        prefilled(model, 40).cache.reset()


# Rows


def test_reordered_rows_go_on_as_if_they_had_always_been_there(model: Any) -> None:
    order = torch.tensor([2, 0, 0])
    feed = prefilled(model, 40, 17, 29)
    feed.cache.reorder_cache(order)
    feed.mask = feed.mask[order]
    expected = Feed(model)
    ids, mask = prompts(40, 17, 29)
    expected(ids[order], mask[order], logits_to_keep=1)
    for count in (1, 3):
        assert close(feed(tokens(3, count)), expected(tokens(3, count)))


def test_repeated_rows_go_on_as_if_they_had_always_been_there(model: Any) -> None:
    feed = prefilled(model, 40, 29)
    feed.cache.batch_repeat_interleave(2)
    feed.mask = feed.mask.repeat_interleave(2, dim=0)
    expected = Feed(model)
    ids, mask = prompts(40, 29)
    expected(ids.repeat_interleave(2, dim=0), mask.repeat_interleave(2, dim=0), logits_to_keep=1)
    for count in (1, 3):
        assert close(feed(tokens(4, count)), expected(tokens(4, count)))


def test_selected_rows_go_on_as_if_they_had_been_alone(model: Any) -> None:
    feed = prefilled(model, 40, 17, 29)
    feed.cache.batch_select_indices(torch.tensor([0, 2]))
    feed.mask = feed.mask[[0, 2]]
    expected = Feed(model)
    ids, mask = prompts(40, 17, 29)
    expected(ids[[0, 2]], mask[[0, 2]], logits_to_keep=1)
    for count in (1, 3):
        assert close(feed(tokens(2, count)), expected(tokens(2, count)))


# Crops


@pytest.mark.parametrize("positive", [False, True])
def test_cropped_tokens_might_never_have_been_fed(model: Any, positive: bool) -> None:
    feed, expected = prefilled(model, 40, 29), prefilled(model, 40, 29)
    feed(tokens(2, 2))
    expected(tokens(2, 2))
    feed(tokens(2, 5, seed=2))
    feed.cache.crop(42 if positive else -5)
    feed.mask = feed.mask[:, :42]
    for count in (1, 3):
        assert close(feed(tokens(2, count)), expected(tokens(2, count)))


def test_the_kept_end_of_a_prompt_can_be_cropped_and_fed_again(model: Any) -> None:
    ids, mask = prompts(40, 29)
    feed = Feed(model)
    expected = feed(ids, mask, logits_to_keep=3)
    feed.cache.crop(-3)
    feed.mask = feed.mask[:, :-3]
    assert close(feed(ids[:, -3:]), expected)


@pytest.mark.parametrize("cut", [-4, 36, -100])
def test_a_crop_into_the_prompt_is_refused_and_changes_nothing(model: Any, cut: int) -> None:
    cache = prefilled(model, 40, 29).cache
    before = state(cache)
    with pytest.raises(
        InputError, match=r"only the last 3 are in every layer. Run the shorter prompt with a new cache"
    ):
        cache.crop(cut)
    assert all(torch.equal(now, then) for now, then in zip(state(cache), before, strict=True))


def test_crops_add_up(model: Any) -> None:
    """Two tokens past the prompt, and three of its own, can go; one more cannot."""
    feed = prefilled(model, 40, 29)
    feed(tokens(2, 2))
    feed.cache.crop(-4)
    feed.cache.crop(-1)
    with pytest.raises(InputError, match="only the last 0 are in every layer"):
        feed.cache.crop(-1)


@pytest.mark.parametrize("length", [0, 40, 41])
def test_a_crop_of_nothing_changes_nothing(model: Any, length: int) -> None:
    cache = prefilled(model, 40, 29).cache
    before = state(cache)
    cache.crop(length)
    assert all(torch.equal(now, then) for now, then in zip(state(cache), before, strict=True))


def test_a_crop_behind_a_window_is_refused_and_changes_nothing() -> None:
    model = tiny("mistral-sliding")
    with halting(model, DASH):
        cache = prefilled(model, 40, 29).cache
    before = state(cache)
    with pytest.raises(InputError, match="sliding-window layer has dropped older tokens"):
        cache.crop(-1)
    assert all(torch.equal(now, then) for now, then in zip(state(cache), before, strict=True))


def test_a_crop_within_the_window() -> None:
    model = tiny("mistral-sliding")
    with halting(model, KeyNorm(start=1, pruning_ratio=0.9, keep_first=0, keep_last=1)):
        feed, expected = prefilled(model, WINDOW - 3), prefilled(model, WINDOW - 3)
        feed(tokens(1, 2, seed=2))
        feed.cache.crop(-2)
        feed.mask = feed.mask[:, :-2]
        assert close(feed(tokens(1, 6)), expected(tokens(1, 6)))


# Copies and turns


def test_a_copy_serves_another_continuation(model: Any) -> None:
    feed = prefilled(model, 40, 29)
    other = Feed(model, copy.deepcopy(feed.cache))
    other.mask = feed.mask
    for seed, one in ((1, feed), (2, other)):
        expected = prefilled(model, 40, 29)
        for count in (1, 3):
            assert close(one(tokens(2, count, seed)), expected(tokens(2, count, seed)))


def test_a_cache_goes_on_in_a_later_block() -> None:
    model = tiny()
    with halting(model, DASH):
        feed, expected = prefilled(model, 40, 29), prefilled(model, 40, 29)
        logits = expected(tokens(2, 3))
    with halting(model, KeyNorm(start=3)):
        assert close(feed(tokens(2, 3)), logits)


def test_a_question_that_fails_can_be_asked_again() -> None:
    model = tiny()
    ids, _ = prompts(40)
    cache = DynamicCache(config=model.config)
    with halting(model, DASH), torch.no_grad():
        model(ids[:, :30], **{CACHE: cache}, logits_to_keep=1)
        wanted = model(ids[:, 30:], **{CACHE: copy.deepcopy(cache)}).logits

        def fails(*_: Any) -> None:
            raise KeyboardInterrupt

        hook = model.get_decoder().layers[4].register_forward_pre_hook(fails)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 30:], **{CACHE: cache})
        hook.remove()
        torch.testing.assert_close(model(ids[:, 30:], **{CACHE: cache}).logits, wanted)


def test_generate_in_turns_on_one_cache() -> None:
    """The second turn reads what the first left: its prompt is not halted anew."""
    model = tiny()
    cache: Any = DynamicCache(config=model.config)
    first, more = prompts(40)[0], tokens(1, 4)
    options = {"max_new_tokens": 3, "do_sample": False, CACHE: cache, "return_dict_in_generate": True}
    with halting(model, DASH) as halted:
        answer = model.generate(first, output_logits=True, **options)
        second = torch.cat([answer.sequences, more], dim=1)
        follow_up = model.generate(second, output_logits=True, **options)
    oracle = Oracle(model, FULL, halted.report)
    theirs = [oracle(first)[:, -1]]
    theirs += [oracle(answer.sequences[:, place : place + 1])[:, -1] for place in (40, 41)]
    assert close(torch.stack(answer.logits), torch.stack(theirs))
    theirs = [oracle(second[:, 42:])[:, -1]]
    theirs += [oracle(follow_up.sequences[:, place : place + 1])[:, -1] for place in (47, 48)]
    assert close(torch.stack(follow_up.logits), torch.stack(theirs))


def test_a_second_turn_on_a_plain_cache_equals_the_stock_model() -> None:
    model = tiny()
    stock = Feed(model)
    stock(*prompts(5))
    expected = stock(tokens(1, 40))
    with halting(model, DASH):
        feed = Feed(model)
        feed(*prompts(5))
        assert torch.equal(feed(tokens(1, 40)), expected)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["llama", "gemma3", "mistral-sliding"])
def test_the_stock_model_cannot_read_a_halted_cache(variant: str, attention: str, count: int) -> None:
    model = tiny(variant, attention)
    with halting(model, DASH):
        feed = prefilled(model, 40)
    with pytest.raises(UnsupportedError, match="go on with it inside `with halting"):
        feed(tokens(1, count))
    with pytest.raises(UnsupportedError, match="go on with it inside `with halting"):
        model(tokens(1, count), **{CACHE: feed.cache})


# Beams and samples


def test_beams() -> None:
    """generate() finds what a plain beam search over the oracle finds."""
    model = tiny()
    ids = prompts(40)[0]
    with halting(model, DASH) as halted:
        ours = model.generate(ids, num_beams=3, max_new_tokens=4, do_sample=False, num_return_sequences=3)
        prefilled(model, 40)
    beams = [(0.0, ids)]
    for step in range(4):
        longer = []
        for score, beam in beams:
            oracle = Oracle(model, FULL, halted.report)
            logits = oracle(ids)[0, -1]
            if step:
                logits = oracle(beam[:, 40:])[0, -1]
            best = logits.log_softmax(dim=-1).topk(3)
            longer += [
                (score + float(gain), torch.cat([beam, token.view(1, 1)], dim=1))
                for gain, token in zip(best.values, best.indices, strict=True)
            ]
        beams = sorted(longer, key=lambda scored: -scored[0])[:3]
    assert ours.tolist() == [beam[0].tolist() for _, beam in beams]


@pytest.mark.parametrize("kept", [plain, frozen], ids=["drop", "frozen"])
def test_several_samples_of_padded_prompts(kept: Any) -> None:
    model = tiny()
    ids, mask = prompts(40, 29)
    torch.manual_seed(0)
    with halting(model, kept(DASH)) as halted:
        ours = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            do_sample=True,
            num_return_sequences=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert len({tuple(row) for row in ours.sequences[:, 40:].tolist()}) > 3  # the samples differ
    oracle = Oracle(model, FULL, halted.report, serving=[layer for layer, _ in halted.report.stages if kept is frozen])
    theirs = [oracle(ours.sequences[:, :40], mask.repeat_interleave(3, dim=0))[:, -1]]
    theirs += [oracle(ours.sequences[:, place : place + 1])[:, -1] for place in range(40, 43)]
    assert close(torch.stack(ours.logits), torch.stack(theirs))
