"""Halted tokens run on in a later turn: those whose states are most similar to the turn's own."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deltahalt import BothEnds, Dash, PolicyError, Progressive, Report, halting
from deltahalt.engine import resuming
from deltahalt.engine.cache import HaltedCache, fork
from deltahalt.engine.resting import Resting
from deltahalt.engine.resuming import choose
from deltahalt.engine.stream import TokenStream
from deltahalt.host.compat import CACHE
from deltahalt.policies.base import place as place_stages
from helpers.oracle import Feed
from helpers.tiny import FULL_VARIANTS, LAYERS, SLIDING_VARIANTS, prompts, tiny

TOLERANCE = 1e-5
OPTIONS: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3, "best": 2, "reach": 8}
POLICY = BothEnds(**OPTIONS)
INSIDE = BothEnds(**OPTIONS, boundary="attention")
CALLS: list[tuple[int, ...]] = [(40, 29), (1, 1), (9, 6), (1, 1), (30, 21), (1, 1)]
NEVER = 99  # a call that does not come


def ids_of(calls: list[tuple[int, ...]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [prompts(*lengths, seed=seed) for seed, lengths in enumerate(calls)]


class Talk:
    """A conversation under a policy. logits: [B, V] of the last token of each call. held: slots in deep layers then."""

    def __init__(self, model: Any, policy: Any, calls: list[tuple[int, ...]], **options: Any) -> None:
        self.feed, self.logits, self.held, self.reports = Feed(model), [], [], list[Report]()
        with halting(model, policy, **options) as halted:
            for ids, mask in ids_of(calls):
                self.logits.append(self.feed(ids, mask, logits_to_keep=1)[:, -1])
                assert isinstance(self.cache, HaltedCache)
                self.held.append(self.cache.segments[-1].slots)
                self.reports.append(halted.report)

    @property
    def cache(self) -> Any:
        return self.feed.cache

    def call_of(self, row: int) -> torch.Tensor:
        """For each token of the row, padding apart, the call in which it ran through deep layers: [n]."""
        real = self.feed.mask[row].bool()
        call = torch.full((len(real),), NEVER)
        for number in reversed(range(len(self.held))):
            slots = self.held[number][row]
            call[slots[slots >= 0]] = number
        return call[real]


def stock_logits(model: Any, talk: Talk, calls: list[tuple[int, ...]], row: int, start: int) -> list[torch.Tensor]:
    """What the stock model gives for the last token of each call, in one run over the row's whole conversation.

    In layers after `start`, a token reads those before it that had run through deep layers by the call in which it
    ran itself. The mask is written out by hand.
    """
    ids = torch.cat([ids[row][mask[row].bool()] for ids, mask in ids_of(calls)])
    call, key = talk.call_of(row), torch.arange(len(ids))
    causal = key <= key[:, None]
    deep = causal & (call <= call[:, None]) & (call < NEVER) | (key == key[:, None])
    hooks = []
    for index, layer in enumerate(model.get_decoder().layers):
        mask = (deep if index > start else causal)[None, None]
        if model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)

        def masked(_: Any, args: Any, kwargs: Any, mask: torch.Tensor = mask) -> Any:
            return args, kwargs | {"attention_mask": mask}

        hooks.append(layer.register_forward_pre_hook(masked, with_kwargs=True))
    try:
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    ends = torch.tensor([lengths[row] for lengths in calls]).cumsum(0) - 1
    return list(logits[ends])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", [POLICY, INSIDE], ids=["after the layer", "inside it"])
@pytest.mark.parametrize("variant", sorted({*FULL_VARIANTS} - {"llama-dynamic-rope"}))
def test_every_family_agrees_with_the_stock_model(variant: str, policy: BothEnds, attention: str) -> None:
    model = tiny(variant, attention)
    talk = Talk(model, policy, CALLS)
    for row in range(2):
        resumed = talk.call_of(row)[: CALLS[0][row]]
        assert (resumed == 2).sum() == talk.reports[2].resumed[row] > 0
        assert (resumed == 4).sum() > 0
        assert (resumed == NEVER).sum() > 0
        theirs = stock_logits(tiny(variant, attention), talk, CALLS, row, start=1)
        gaps = [float((ours[row] - other).abs().max()) for ours, other in zip(talk.logits, theirs, strict=True)]
        assert max(gaps) < TOLERANCE


def test_the_stock_model_notices_tokens_that_do_not_run_on() -> None:
    talk = Talk(tiny(), POLICY, CALLS)
    talk.held = Talk(tiny(), BothEnds(**OPTIONS, resume=0.0), CALLS).held
    theirs = stock_logits(tiny(), talk, CALLS, 0, start=1)
    assert (talk.logits[2][0] - theirs[2]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("policy", [POLICY, INSIDE], ids=["after the layer", "inside it"])
def test_pieces_change_nothing(policy: BothEnds, rows: int) -> None:
    calls = [lengths[:rows] for lengths in CALLS]
    whole, pieces = Talk(tiny(), policy, calls), Talk(tiny(), policy, calls, piece_tokens=5)
    assert all(torch.equal(one, other) for one, other in zip(whole.held, pieces.held, strict=True))
    gaps = [float((one - other).abs().max()) for one, other in zip(whole.logits, pieces.logits, strict=True)]
    assert max(gaps) < TOLERANCE


def states(*lengths: int, seed: int) -> TokenStream:
    """A stream of random states, padded on the left."""
    hidden = torch.randn(len(lengths), max(lengths), 32, generator=torch.Generator().manual_seed(seed))
    return TokenStream(hidden, torch.zeros(hidden.shape[:2], dtype=torch.long), lengths, {})


@pytest.mark.parametrize("policy", [POLICY, INSIDE], ids=["after the layer", "inside it"])
@pytest.mark.parametrize("turn", [6, 60], ids=["short", "long"])
def test_what_is_similar_to_the_ends_of_the_turn_runs_on(turn: int, policy: BothEnds) -> None:
    """All tokens of a short turn are compared; of a long one, the first 2 and the last 3."""
    policy = replace(policy, resume=0.1, reach=0)
    resting, later = states(400, 320, seed=0), states(turn, turn - 1, seed=1)
    for row, begin in enumerate([100, 200]):
        place = resting.row(row).start + begin
        resting.hidden[row, place : place + 5] = later.hidden[row, later.row(row)][[0, 1, -3, -2, -1]]
        if turn == 60:
            resting.hidden[row, place + 80 : place + 100] = later.hidden[row, 20:40]
    (stage,) = place_stages(policy, LAYERS)
    chosen, checks = choose(Resting(stage, resting), later, layer=1)
    assert [len(index) for index in chosen] == [40, 32]
    assert set(range(100, 105)) <= set(chosen[0].tolist())
    assert set(range(200, 205)) <= set(chosen[1].tolist())
    if turn == 60:
        assert not set(range(184, 200)) <= set(chosen[0].tolist())
    assert not any(found for found, _ in checks)


def test_states_of_nan_are_refused() -> None:
    model = tiny()
    talk = Talk(model, POLICY, [(40,)])
    talk.cache.resting.tokens.hidden[:] = torch.nan
    with halting(model, POLICY), pytest.raises(PolicyError, match="NaN"):
        talk.feed(*prompts(5), logits_to_keep=1)


def test_counts() -> None:
    """A quarter of those that rest runs on in each turn, rounded up, and all others rest."""
    calls = [(40,), (5,), (4,)]
    talk = Talk(tiny(), POLICY, calls)
    halted = 40 - len(talk.reports[0].kept[0])
    first = -(-halted // 4)
    second = -(-(halted - first) // 4)
    assert [report.resumed for report in talk.reports] == [(), (first,), (second,)]
    assert talk.cache.resting.tokens.lengths == (halted - first - second,)
    assert talk.reports[1].lengths == ((5, 5, *(3 * (5 + first,)), 1),)
    assert f"{first} of earlier turns ran on" in repr(talk.reports[1])
    assert talk.reports[1].flops > talk.reports[1].full_flops


def test_tokens_that_halt_in_a_turn_rest_beside_those_of_the_prompt() -> None:
    talk = Talk(tiny(), POLICY, CALLS[:5])
    for row in range(2):
        rest = talk.cache.resting.tokens
        slots = rest.slots[row, rest.row(row)].tolist()
        real = talk.feed.mask[row].nonzero().squeeze(1).tolist()
        assert slots == sorted(set(real) - set(talk.held[-1][row].tolist()))


def test_never_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "MOST", 3)
    assert Talk(tiny(), POLICY, [(40,), (9,)]).reports[1].resumed == (3,)


def test_all_run_on() -> None:
    talk = Talk(tiny(), BothEnds(**OPTIONS, resume=1.0), [(40, 29), (5, 4), (5, 5), (1, 1)])
    assert talk.reports[2].resumed == talk.reports[1].resumed  # the report of the turn before
    for row in range(2):
        slots = talk.held[-1][row]
        assert sorted(slots[slots >= 0].tolist()) == talk.feed.mask[row].nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    ("variant", "policy"),
    [
        ("llama", BothEnds(**OPTIONS, resume=0.0)),
        ("llama", Dash(start=1, pruning_ratio=0.6, keep_first=2, keep_last=3)),
        ("llama", Progressive([POLICY, Dash(start=3, pruning_ratio=0.7, keep_first=2, keep_last=3)])),
        *((variant, POLICY) for variant in SLIDING_VARIANTS),
    ],
)
def test_where_none_rest(variant: str, policy: Any) -> None:
    talk = Talk(tiny(variant), policy, [(40,), (9,)])
    assert talk.cache.resting is None
    assert talk.reports[1] is not None
    assert not any(report.resumed for report in talk.reports)


def test_all_logits_of_a_turn_let_none_run_on() -> None:
    model, feed = tiny(), Feed(tiny())
    with halting(model, POLICY):
        feed.model = model
        feed(*prompts(40), logits_to_keep=1)
        before = feed.cache.resting  # type: ignore[attr-defined]
        feed(*prompts(9))
    assert feed.cache.resting is before  # type: ignore[attr-defined]
    assert before.tokens.width > 0


def test_another_policy_leaves_them_at_rest() -> None:
    model = tiny()
    feed = Feed(model)
    with halting(model, POLICY):
        feed(*prompts(40), logits_to_keep=1)
    before = feed.cache.resting  # type: ignore[attr-defined]
    with halting(model, BothEnds(**OPTIONS | {"start": 2})) as halted:
        feed(*prompts(30), logits_to_keep=1)
        assert halted.report.stages
    assert feed.cache.resting is before  # type: ignore[attr-defined]
    with halting(model, POLICY) as halted:
        feed(*prompts(5), logits_to_keep=1)
        assert halted.report.resumed[0] > 0


def test_a_fork_and_a_copy_go_on_by_themselves() -> None:
    model = tiny()
    talk = Talk(model, POLICY, [(40, 29)])
    ids, mask = prompts(9, 6, seed=7)
    longer = torch.cat([talk.feed.mask, mask], dim=1)
    results = []
    with torch.no_grad(), halting(model, POLICY):
        for cache in (fork(talk.cache), copy.deepcopy(talk.cache), talk.cache):
            given = {CACHE: cache, "logits_to_keep": 1, "position_ids": (longer.cumsum(1) - 1).clamp(min=0)[:, -9:]}
            results.append(model(ids, attention_mask=longer, **given).logits)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_rows_that_are_repeated_and_selected() -> None:
    model = tiny()
    twice, once = Talk(model, POLICY, [(40, 29)]), Talk(model, POLICY, [(40, 29)])
    twice.cache.batch_repeat_interleave(2)
    twice.cache.batch_select_indices(torch.tensor([3, 0]))
    tokens, before = twice.cache.resting.tokens, once.cache.resting.tokens
    assert tokens.lengths == before.lengths[::-1]
    assert torch.equal(tokens.slots, before.slots[[1, 0]])
    assert torch.equal(tokens.hidden, before.hidden[[1, 0]])


def test_beams_keep_none() -> None:
    talk = Talk(tiny(), POLICY, [(40, 29)])
    talk.cache.reorder_cache(torch.tensor([0, 0]))
    assert talk.cache.resting is None


def test_a_turn_that_is_cropped() -> None:
    talk = Talk(tiny(), POLICY, [(40,), (5,)])
    held = talk.held[-1][0].tolist()
    talk.cache.crop(-5)
    assert talk.cache.segments[-1].slots[0].tolist() == held[:-5]
    assert talk.cache.seen == 40


def test_an_error_leaves_the_cache_as_it_was() -> None:
    model = tiny()
    talk = Talk(model, POLICY, [(40,)])
    resting, entries = talk.cache.resting, [layer.keys.shape for layer in talk.cache.layers]

    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    hook = model.get_decoder().layers[4].register_forward_pre_hook(fail)
    with halting(model, POLICY), pytest.raises(RuntimeError, match="stop"):
        talk.feed(*prompts(9), logits_to_keep=1)
    hook.remove()
    assert talk.cache.resting is resting
    assert [layer.keys.shape for layer in talk.cache.layers] == entries


def test_generate_in_a_chat() -> None:
    """`generate` on a conversation whose beginning is in the cache."""
    model = tiny()
    ids, _ = prompts(60)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    with halting(model, POLICY) as halted:
        first = model.generate(ids, **options)
        later = torch.cat([first.sequences, prompts(12, seed=3)[0]], dim=1)
        second = model.generate(later, **{CACHE: getattr(first, CACHE)}, **options)
        assert halted.report.resumed[0] > 0
    assert second.sequences.shape[1] == later.shape[1] + 4


@pytest.mark.parametrize("resume", [-0.1, 1.5])
def test_a_share_out_of_range(resume: float) -> None:
    with pytest.raises(PolicyError, match="resume"):
        BothEnds(resume=resume)


def test_a_cache_without_halted_tokens_has_none() -> None:
    model = tiny()
    cache = DynamicCache()
    with torch.no_grad(), halting(model, BothEnds(shortest=100)):
        model(prompts(40)[0], **{CACHE: cache}, logits_to_keep=1)
    assert type(cache) is DynamicCache
