"""A later turn, which continues a cache, halts as a prompt does; all that came before it stays as it is."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import (
    BothEnds,
    Dash,
    Dense,
    Forecast,
    InputError,
    KeyNorm,
    MaxSim,
    Policy,
    PolicyError,
    Progressive,
    Random,
    Report,
    SingleInputKV,
    WindowAttention,
    halting,
)
from deltahalt.engine.cache import HaltedCache
from deltahalt.host.compat import CACHE
from helpers.frozen import frozen
from helpers.oracle import Feed, Oracle, oracle_for, reports_of
from helpers.tiny import FULL, FULL_VARIANTS, SLIDING_VARIANTS, VARIANTS, VOCAB, prompts, tiny

TOLERANCE = 1e-5
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
DASH = Dash(**HALF)
POLICIES = {
    "dash": DASH,
    "inside the layer": Dash(**HALF, boundary="attention"),
    "key-norm": KeyNorm(**HALF),
    "window-attention": WindowAttention(**HALF, window=3, ahead=1),
    "max-sim": MaxSim(**HALF, window=3, kernel=5),
    "both-ends": BothEnds(**HALF, best=2, reach=8, resume=0.0),  # test_resuming.py has its own oracle
    "random": Random(**HALF),
    "two stages": Progressive(
        [
            KeyNorm(start=1, pruning_ratio=0.3, keep_first=2, keep_last=4),
            Dash(start=3, pruning_ratio=0.7, keep_first=1, keep_last=3, boundary="attention"),
        ]
    ),
}
SERVING = {
    "frozen": frozen(DASH),
    "an exit": SingleInputKV(start=3, keep_last=4),
    "a forecast": Forecast(start=2, keep_last=9),
}
# The frequencies of the other change with the length, so that the host itself does not continue a cache exactly.
CONTINUED = VARIANTS.keys() - {"llama-dynamic-rope"}
ONE: list[tuple[int, ...]] = [(40,), (1,), (24,), (1,), (31,), (3,), (1,)]
TWO: list[tuple[int, ...]] = [(40, 29), (1, 1), (24, 17), (1, 1), (14, 31), (3, 3), (1, 1)]


def calls_of(lengths: list[tuple[int, ...]]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Prompts, turns and generated tokens of these lengths; turns are padded on the left, too."""
    return [prompts(*own, seed=seed) for seed, own in enumerate(lengths)]


def logits_and_reports(
    model: Any, policy: Policy | Progressive, lengths: list[tuple[int, ...]], feed: Feed, **options: Any
) -> tuple[list[torch.Tensor], list[Report]]:
    with halting(model, policy, **options) as halted, reports_of(model, halted) as reports:
        logits = [feed(*call, logits_to_keep=1) for call in calls_of(lengths)]
    return logits, reports


def gap(
    variant: str,
    attention: str,
    policy: Policy | Progressive,
    lengths: list[tuple[int, ...]] = TWO,
    cache: DynamicCache | None = None,
) -> float:
    """Largest difference of any last logit between engine and oracle, over all calls of a conversation."""
    model = tiny(variant, attention)
    ours, reports = logits_and_reports(model, policy, lengths, Feed(model, cache))
    turns = [number for number, own in enumerate(lengths) if number and max(own) > 9]
    assert all(reports[turn].stages for turn in turns)
    oracle = oracle_for(tiny(variant, attention), VARIANTS[variant].windows, policy, reports[0])
    theirs = [
        oracle(*call, report=reports[number] if number in turns else None)[:, -1:]
        for number, call in enumerate(calls_of(lengths))
    ]
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", sorted(CONTINUED))
def test_every_family(variant: str, attention: str) -> None:
    assert gap(variant, attention, DASH) < TOLERANCE


@pytest.mark.parametrize("lengths", [ONE, TWO], ids=["alone", "batch"])
@pytest.mark.parametrize("variant", ["llama", "gemma3", "qwen2-sliding"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_kind_of_policy(policy: str, variant: str, lengths: list[tuple[int, ...]]) -> None:
    assert gap(variant, "sdpa", POLICIES[policy], lengths) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", sorted(CONTINUED.intersection(FULL_VARIANTS)))
@pytest.mark.parametrize("policy", SERVING)
def test_halted_tokens_of_a_turn_whose_keys_stay(policy: str, variant: str, attention: str) -> None:
    assert gap(variant, attention, SERVING[policy]) < TOLERANCE


@pytest.mark.parametrize("variant", SLIDING_VARIANTS)
def test_a_cache_that_stores_more_than_the_window(variant: str) -> None:
    cache = DynamicCache()  # made without a config, it does not know of windows
    assert gap(variant, "sdpa", DASH, cache=cache) < TOLERANCE


@pytest.mark.parametrize(
    ("variant", "policy"),
    [
        ("llama", DASH),
        ("llama", POLICIES["two stages"]),
        ("llama", SERVING["frozen"]),
        ("gemma3", DASH),
        ("gemma3", POLICIES["two stages"]),
        ("mistral-sliding", DASH),
    ],
    ids=["one", "two", "frozen", "sliding and full", "two, sliding and full", "sliding"],
)
def test_a_prefix_that_the_stock_model_read(variant: str, policy: Any) -> None:
    """So a system prompt that is cached once serves halted prompts."""
    model = tiny(variant)
    prefix, *lengths = TWO
    feed = Feed(model)
    feed(*prompts(*prefix, seed=0))
    with halting(model, policy) as halted, reports_of(model, halted) as reports:
        ours = [feed(*call, logits_to_keep=1) for call in calls_of(TWO)[1:]]
    assert [len(kept) for kept in reports[1].kept] != list(reports[1].prompts)
    nothing = Report(halted.shape, prefix, (), (), (), 0, 0, None)
    oracle = oracle_for(tiny(variant), VARIANTS[variant].windows, policy, nothing)
    oracle(*prompts(*prefix, seed=0))
    theirs = [
        oracle(*call, report=reports[number] if max(lengths[number]) > 9 else None)[:, -1:]
        for number, call in enumerate(calls_of(TWO)[1:])
    ]
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def test_a_turn_without_halting_in_its_prompt() -> None:
    assert gap("llama", "sdpa", DASH, [(5,), (30,), (1,)]) < TOLERANCE


def test_the_oracle_notices_a_turn_that_stays_whole() -> None:
    model = tiny()
    ours, reports = logits_and_reports(model, DASH, ONE[:3], Feed(model))
    oracle = Oracle(tiny(), FULL, reports[0])
    theirs = [oracle(*call)[:, -1:] for call in calls_of(ONE[:3])]
    assert (ours[2] - theirs[2]).abs().max() > 1000 * TOLERANCE


def test_the_policy_sees_the_tokens_of_the_turn_alone() -> None:
    """They count from 0, the policy's protected ends are those of the turn, and shares are of its length."""
    model = tiny()
    _, reports = logits_and_reports(model, POLICIES["max-sim"], TWO, Feed(model))
    turn = reports[2]
    assert turn.prompts == (24, 17)
    for row, tokens in enumerate(turn.prompts):
        kept = turn.kept[row].tolist()
        assert len(kept) == POLICIES["max-sim"].stages[0].kept(tokens)
        assert {0, 1, tokens - 3, tokens - 2, tokens - 1} <= set(kept)
        scores = turn.scores[0][row]
        assert scores is not None
        assert len(scores) == tokens


def test_the_report_counts_what_the_cache_holds() -> None:
    model = tiny()
    _, reports = logits_and_reports(model, DASH, ONE[:3], Feed(model))
    prompt, turn = reports[0], reports[2]
    kept, left = len(prompt.kept[0]), len(turn.kept[0])
    assert turn.cached == (41, 41, kept + 1, kept + 1, kept + 1, kept + 1)
    assert turn.lengths == ((24, 24, left, left, left, 1),)
    entry = prompt.cache_bytes // (2 * 40 + 4 * kept)
    assert turn.cache_bytes == entry * (2 * 65 + 4 * (kept + 1 + left))
    assert turn.full_cache_bytes == entry * 6 * 65
    attention = 4 * turn.shape.heads * turn.shape.head_dim
    pairs = sum(own * held for own, held in zip(turn.lengths[0], turn.cached, strict=True))
    with halting(model, DASH) as halted:
        Feed(model)(*calls_of(ONE)[2], logits_to_keep=1)
    assert turn.flops == halted.report.flops + attention * pairs
    assert turn.full_flops == halted.report.full_flops + attention * 24 * sum(turn.cached)


def test_an_encoder_prefix_is_before_a_prompt_that_halts() -> None:
    """As prefix tuning has it: entries that no prompt has made."""
    model = tiny()
    cache = DynamicCache(config=model.config)
    for layer in range(6):
        cache.update(torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16), layer)
    ids = prompts(40)[0]
    with halting(model, DASH) as halted, torch.no_grad():
        model(ids, attention_mask=torch.ones(1, 45, dtype=torch.long), **{CACHE: cache}, logits_to_keep=1)
    assert halted.report.reason is None
    assert (halted.report.prompts, halted.report.cached) == ((40,), (5,) * 6)
    assert [len(kept) for kept in halted.report.kept] == [DASH.kept(40)]


# What stays whole


def test_a_turn_whose_logits_are_all_wanted_stays_whole() -> None:
    model = tiny()
    calls = calls_of(ONE[:3])
    with halting(model, DASH) as halted:
        feed = Feed(model)
        for call in calls[:2]:
            feed(*call, logits_to_keep=1)
        first = halted.report
        other = Feed(model, copy.deepcopy(feed.cache))
        other.mask = feed.mask
        logits = feed(*calls[2])
        assert halted.report.stages == first.stages
        assert "tokens of a later turn halt only where logits_to_keep=1 is given" in (halted.report.reason or "")
        assert logits.isfinite().all()
        other(*calls[2], logits_to_keep=1)
        assert halted.report.reason is None
    oracle = Oracle(tiny(), FULL, first)
    theirs = [oracle(*call) for call in calls]
    assert (logits - theirs[2]).abs().max() < TOLERANCE


def test_a_short_turn_stays_whole() -> None:
    model = tiny()
    _, reports = logits_and_reports(model, DASH, [(40,), (4,)], Feed(model))
    assert reports[1].reason == "the policy keeps every token of later turns of 4 tokens or fewer"
    _, reports = logits_and_reports(model, DASH, [(40,), (24,)], Feed(model), min_prompt_tokens=30)
    assert reports[1].reason == "every later turn is shorter than min_prompt_tokens=30"
    assert reports[1].stages == reports[0].stages


# Generation, crops, errors


def test_generate_in_turns_on_one_cache() -> None:
    """The second turn reads what the first left, and halts by itself."""
    model = tiny()
    cache: Any = DynamicCache(config=model.config)
    first, more = prompts(40)[0], torch.randint(1, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 3, "do_sample": False, CACHE: cache, "return_dict_in_generate": True}
    with halting(model, DASH) as halted:
        answer = model.generate(first, output_logits=True, **options)
        prompt = halted.report
        second = torch.cat([answer.sequences, more], dim=1)
        follow_up = model.generate(second, output_logits=True, **options)
        turn = halted.report
    assert turn.prompts == (21,)  # the last generated token was not run yet
    oracle = Oracle(tiny(), FULL, prompt)
    theirs = [oracle(first)[:, -1]]
    theirs += [oracle(answer.sequences[:, place : place + 1])[:, -1] for place in (40, 41)]
    assert (torch.stack(answer.logits) - torch.stack(theirs)).abs().max() < TOLERANCE
    theirs = [oracle(second[:, 42:], report=turn)[:, -1]]
    theirs += [oracle(follow_up.sequences[:, place : place + 1])[:, -1] for place in (63, 64)]
    assert (torch.stack(follow_up.logits) - torch.stack(theirs)).abs().max() < TOLERANCE


def test_beams_after_a_halted_turn() -> None:
    model = tiny()
    ids = torch.cat([prompts(40)[0], prompts(24, seed=2)[0]], dim=1)
    with halting(model, DASH):
        cache: Any = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :40], **{CACHE: cache}, logits_to_keep=1)
        options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
        one = model.generate(ids, **{CACHE: copy.deepcopy(cache)}, **options)
        with pytest.raises(InputError, match="the cache holds 1 row and the input has 3"):
            model.generate(ids, **{CACHE: copy.deepcopy(cache)}, **options, num_beams=3)
        cache.batch_repeat_interleave(3)
        many = model.generate(ids, **{CACHE: cache}, **options, num_beams=3, length_penalty=0.0)
    assert many.shape == one.shape
    with torch.no_grad(), halting(model, DASH) as halted:
        best = [_likelihood(model, ids, answer) for answer in (one, many)]
    assert halted.report.reason is None
    assert best[1] >= best[0] - TOLERANCE


def _likelihood(model: Any, ids: torch.Tensor, answer: torch.Tensor) -> float:
    """Log-likelihood of what follows `ids`, whose last 24 tokens are a turn of their own."""
    feed = Feed(model)
    feed(ids[:, :40], logits_to_keep=1)
    logits = [feed(ids[:, 40:], logits_to_keep=1)]
    logits += [feed(answer[:, place : place + 1]) for place in range(64, answer.shape[1] - 1)]
    chances = torch.cat(logits, dim=1).log_softmax(dim=-1)
    return float(chances.gather(2, answer[:, 64:, None]).sum())


def test_only_what_every_layer_holds_can_be_cropped() -> None:
    model = tiny()
    with halting(model, DASH):
        feed = Feed(model)
        for call in calls_of(ONE[:3]):
            feed(*call, logits_to_keep=1)
        assert isinstance(feed.cache, HaltedCache)
        with pytest.raises(InputError, match="only the last 3 are in every layer"):
            feed.cache.crop(-4)
        whole, mask = copy.deepcopy(feed.cache), feed.mask
        expected = feed(*prompts(6, seed=9))
        again = Feed(model, whole)
        again.mask = mask
        again(*prompts(2, seed=8))
        whole.crop(-2)
        again.mask = mask
        assert (again(*prompts(6, seed=9)) - expected).abs().max() < TOLERANCE


def test_an_error_in_a_turn_leaves_the_cache_as_it_was() -> None:
    model = tiny()

    class Breaks(Dash):
        def score(self, view: Any) -> torch.Tensor:
            if view.prompt == 24:
                return torch.full((24,), torch.nan)
            return super().score(view)

    calls = calls_of(ONE[:3])
    with halting(model, Breaks(**HALF)):
        feed = Feed(model)
        for call in calls[:2]:
            feed(*call, logits_to_keep=1)
        before, mask = copy.deepcopy(feed.cache), feed.mask
        with pytest.raises(PolicyError, match="NaN"):
            feed(*calls[2], logits_to_keep=1)
        feed.mask = mask
        other = Feed(model, before)
        other.mask = mask
        assert torch.equal(feed(*prompts(5, seed=7)), other(*prompts(5, seed=7)))


def test_the_full_model_in_turns_is_the_host_bit_for_bit() -> None:
    model = tiny()
    stock = Feed(model)
    expected = [stock(*call, logits_to_keep=1) for call in calls_of(TWO)]
    ours, _ = logits_and_reports(model, Dense(), TWO, Feed(model))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
