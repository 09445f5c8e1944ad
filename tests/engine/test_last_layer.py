"""The last layer runs on the last token alone where nothing else of it is read, and nothing that is kept changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltahalt import Dash, DashFrozen, Dense, Forecast, Policy, Progressive, SingleInputKV, halting
from deltahalt.engine import halted as engine
from deltahalt.engine.cache import HaltedCache
from deltahalt.engine.observer import observing
from deltahalt.host.compat import CACHE
from helpers.flash import flash_attention
from helpers.loads import with_exit
from helpers.oracle import Feed
from helpers.tiny import LAYERS, VARIANTS, VOCAB, prompts, tiny

TOLERANCE = 1e-5
TOKENS = 40
HALF: dict[str, Any] = {"start": 1, "pruning_ratio": 0.6, "keep_first": 2, "keep_last": 3}
DASH = Dash(**HALF)
KEPT = DASH.kept(TOKENS)
POLICIES = {
    "at the layer before": Dash(**HALF | {"start": LAYERS - 2}),
    "inside the layer before": Dash(**HALF | {"start": LAYERS - 2}, boundary="attention"),
    "two stages": Progressive([DASH, Dash(**HALF | {"start": 3, "pruning_ratio": 0.8})]),
    "frozen": DashFrozen(**HALF),
    "an exit": SingleInputKV(start=3, keep_last=4),
    "an exit of all but one": SingleInputKV(start=3, keep_last=1),
    "a forecast": Forecast(start=2, keep_last=9),
}


def exits(variant: str) -> bool:
    """Whether the last layer can run on one token alone."""
    return VARIANTS[variant].windows[-1] is None


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The number of tokens, padding included, in each call of the last layer's FFN."""
    counts: list[int] = []
    hook = model.get_decoder().layers[-1].mlp.register_forward_hook(lambda _, args, out: counts.append(out.shape[1]))
    try:
        yield counts
    finally:
        hook.remove()


def without_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "exit_layer", lambda *_: None)


def turns(*rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A prompt, a generated token, and a later turn."""
    more = torch.randint(1, VOCAB, (len(rows), 25), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(more)
    return [prompts(*rows), (more[:, :1], real[:, :1]), (more[:, 1:], real[:, 1:])]


def logits_and_cache(model: Any, policy: Any, *rows: int, **options: Any) -> tuple[list[torch.Tensor], Any]:
    with halting(model, policy, **options):
        feed = Feed(model)
        return [feed(*call, logits_to_keep=1) for call in turns(*rows)], feed.cache


def assert_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, variant: str, policy: Any, *rows: int, attention: str = "sdpa", **options: Any
) -> None:
    """Logits, and every layer's K and V and the tokens they are of, equal those of a run without the exit."""
    model = tiny(variant, attention)
    with counted(model) as counts:
        logits, cache = logits_and_cache(model, policy, *rows, **options)
    assert ((counts[0] == 1) and (counts[-1] == 1)) == exits(variant)
    without_exit(monkeypatch)
    expected, other = logits_and_cache(tiny(variant, attention), policy, *rows, **options)
    for ours, theirs in zip(logits, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=TOLERANCE)
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        assert torch.allclose(ours.keys, theirs.keys, atol=TOLERANCE)
        assert torch.allclose(ours.values, theirs.values, atol=TOLERANCE)
    assert (cache.tail, cache.seen) == (other.tail, other.seen)
    for ours, theirs in zip(cache.segments, other.segments, strict=True):
        assert (ours.start, ours.padded) == (theirs.start, theirs.padded)
        assert torch.equal(ours.slots, theirs.slots)


PIECES = pytest.mark.parametrize("pieces", [None, 5], ids=["whole", "pieces"])
ROWS = pytest.mark.parametrize("rows", [(TOKENS,), (TOKENS, 29)], ids=str)


@PIECES
@ROWS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_cache_of_a_prompt_and_a_later_turn(
    variant: str, attention: str, rows: tuple[int, ...], pieces: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_nothing_changes(monkeypatch, variant, DASH, *rows, attention=attention, piece_tokens=pieces)


@PIECES
@ROWS
@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_kind_of_stage(
    policy: str, rows: tuple[int, ...], pieces: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_nothing_changes(monkeypatch, "llama", POLICIES[policy], *rows, piece_tokens=pieces)


@PIECES
def test_beside_a_row_of_one_token(pieces: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_nothing_changes(monkeypatch, "llama", DASH, TOKENS, 1, piece_tokens=pieces)


@PIECES
@ROWS
def test_flash_attention(rows: tuple[int, ...], pieces: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention)
    model = tiny()
    model.config._attn_implementation = "flash_attention_2"
    with counted(model) as counts:
        ours, _ = logits_and_cache(model, DASH, *rows, piece_tokens=pieces)
    assert counts == [1, 1, 1]
    expected, _ = logits_and_cache(tiny(), DASH, *rows)
    assert all(torch.allclose(*both, atol=TOLERANCE) for both in zip(ours, expected, strict=True))


@PIECES
@pytest.mark.parametrize("variant", VARIANTS)
def test_generated_tokens(variant: str, pieces: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = prompts(TOKENS, 29)

    def answers() -> torch.Tensor:
        model = tiny(variant)
        with halting(model, DASH, piece_tokens=pieces):
            generated: torch.Tensor = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        return generated

    ours = answers()
    without_exit(monkeypatch)
    assert torch.equal(ours, answers())


def test_the_report_shows_the_policy_s_stages_and_what_ran() -> None:
    model, (ids, mask) = tiny(), prompts(TOKENS, 29)
    reports = []
    for wanted in (1, 2):
        with halting(model, DASH) as halted:
            Feed(model)(ids, mask, logits_to_keep=wanted)
        reports.append(halted.report)
    ours, whole = reports
    assert [layer for layer, _ in ours.stages] == [1]
    assert all(torch.equal(*kept) for kept in zip(ours.kept, whole.kept, strict=True))
    assert [list(loads) for loads in ours.loads] == [with_exit(loads) for loads in whole.loads]
    assert ours.cache_bytes == whole.cache_bytes
    assert ours.flops < whole.flops


def test_the_last_token_s_state_alone_is_returned() -> None:
    model, states = tiny(), []
    model.get_decoder().register_forward_hook(lambda _, args, output: states.append(output.last_hidden_state))
    with halting(model, DASH):
        Feed(model)(*prompts(TOKENS, 29), logits_to_keep=1)
    assert states[0].shape == (2, TOKENS, 64)
    assert states[0][:, -1].isfinite().all()
    assert states[0][:, :-1].isnan().all()


def test_kv_of_the_others_are_computed_piece_by_piece() -> None:
    model, seen = tiny(), []
    model.model.layers[-1].input_layernorm.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    with halting(model, DASH, piece_tokens=5):
        Feed(model)(*prompts(TOKENS), logits_to_keep=1)
    assert KEPT == 19
    assert seen == [5, 5, 5, 3, 1]


def test_cropping_and_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer holds K and V of all that the policy never halts, also of tokens that it did not run."""

    def logits() -> torch.Tensor:
        model = tiny()
        with halting(model, DASH):
            feed = Feed(model)
            feed(*prompts(TOKENS), logits_to_keep=1)
            assert isinstance(feed.cache, HaltedCache)
            feed.cache.crop(-2)
            feed.mask = feed.mask[:, :-2]
            return feed(*prompts(4, seed=5))

    ours = logits()
    without_exit(monkeypatch)
    assert torch.allclose(ours, logits(), atol=TOLERANCE)


# Where all active tokens run through the last layer


def runs(model: Any, policy: Policy, wanted: int, **options: Any) -> list[int]:
    ids, mask = prompts(TOKENS)
    with counted(model) as counts, halting(model, policy), torch.no_grad():
        model(ids, attention_mask=mask, logits_to_keep=wanted, **options)
    return counts


def test_where_more_than_one_state_is_read() -> None:
    assert runs(tiny(), DASH, 1) == [1]
    assert runs(tiny(), DASH, 2) == [KEPT]


def test_where_the_head_is_not_known() -> None:
    model = tiny()
    with counted(model) as counts, halting(model, DASH), torch.no_grad():
        model.get_decoder()(prompts(TOKENS)[0])
    assert counts == [KEPT]


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("policy", [Dense(), Dash(**HALF | {"keep_last": TOKENS})], ids=["dense", "all protected"])
def test_where_nothing_halts(policy: Policy, wanted: int) -> None:
    assert runs(tiny(), policy, wanted) == [TOKENS]


def test_in_a_later_turn_that_stays_whole() -> None:
    model = tiny()
    with counted(model) as counts, halting(model, DASH):
        feed = Feed(model)
        feed(*prompts(TOKENS), logits_to_keep=1)
        feed(*prompts(4, seed=1), logits_to_keep=1)
    assert counts == [1, 4]


def test_without_a_cache() -> None:
    assert runs(tiny(), DASH, 1, use_cache=False) == [KEPT]


def test_a_last_layer_with_a_window_runs_whole_once_the_prompt_outgrows_it() -> None:
    assert runs(tiny("mistral-sliding"), DASH, 1) == [KEPT]
    assert runs(tiny("mistral-sliding", sliding_window=TOKENS), DASH, 1) == [KEPT]
    assert runs(tiny("mistral-sliding", sliding_window=TOKENS + 1), DASH, 1) == [1]
    assert runs(tiny("gemma3"), DASH, 1) == [KEPT]


@pytest.mark.parametrize("name", ["register_forward_hook", "register_forward_pre_hook"])
def test_where_a_hook_sees_the_last_attention(name: str) -> None:
    model, seen = tiny(), []
    attention = model.model.layers[-1].self_attn
    register = getattr(attention, name)
    register(lambda _, args, kwargs, *out: seen.append(kwargs["hidden_states"].shape[1]), with_kwargs=True)
    assert runs(model, DASH, 1) == [KEPT]
    assert seen == [KEPT]


def test_where_the_last_layer_is_offloaded(tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer == LAYERS - 1 else "cpu" for layer in range(LAYERS)}
    assert runs(dispatch_model(tiny(), places, main_device="cpu", offload_dir=tmp_path), DASH, 1) == [KEPT]


def test_a_cache_made_without_a_config() -> None:
    model, cache = tiny(), DynamicCache()
    assert runs(model, DASH, 1, **{CACHE: cache}) == [1]
    assert cache.layers[-1].keys.shape[-2] == KEPT


def test_where_every_layer_is_observed() -> None:
    model, seen = tiny(), []
    with counted(model) as counts, observing(model, lambda view: seen.append(len(view.positions))), torch.no_grad():
        model(prompts(TOKENS)[0], logits_to_keep=1)
    assert counts == [TOKENS]
    assert seen == [TOKENS] * LAYERS
